from __future__ import annotations

import shutil
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.support.hub import hub_dir, hub_layout, original_layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """One directory of every family and layout, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("hub")

    @cache
    def made(family: str, layout: str) -> Path:
        if layout == "saved":
            return hub_dir(folder, family)
        rename = hub_layout if layout == "hub" else original_layout
        return rename(made(family, "saved"), folder / f"{family}-{layout}")

    return made


@pytest.fixture
def checkpoint(_made: Callable[[str, str], Path], tmp_path: Path) -> Callable[..., Path]:
    """`checkpoint(family, layout)`: a tiny checkpoint of its own, which a test may change."""

    def copy(family: str, layout: str = "hub") -> Path:
        target = tmp_path / f"{family}-{layout}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(_made(family, layout), target)
        return target

    return copy
