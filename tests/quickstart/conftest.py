"""A little tree of stamps, drawn on the spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.stamps import write_tree

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stamps_dir(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "stamps")
