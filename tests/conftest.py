"""What every test stands on: a cache folder of its own, so that none reads what another run left there."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def pytest_configure() -> None:
    """Hear Ctrl-C and a closed terminal also where the tests run behind `&` or nohup, which make them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def cache_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """An empty `$OPSIN_HOME`; tests that fetch assets keep the real one, where they may lie already."""
    if request.node.get_closest_marker("network"):
        return None
    folder = tmp_path_factory.mktemp("home")
    request.getfixturevalue("monkeypatch").setenv("OPSIN_HOME", str(folder))
    return folder
