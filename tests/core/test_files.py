"""The cache folder and home folders in paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from opsin.core.errors import OpsinError
from opsin.core.files import expanded, home

NOBODY = "no home folder is known for ~nosuchuser; write the path without it"


def test_a_relative_cache_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPSIN_HOME", "cache")
    assert home() == tmp_path / "cache"


def test_the_cache_folder_is_below_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OPSIN_HOME", raising=False)
    assert home() == tmp_path / ".cache" / "opsin"
    monkeypatch.setenv("OPSIN_HOME", "~/elsewhere")
    assert home() == tmp_path / "elsewhere"


def test_the_home_of_nobody_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpsinError, match=f"~nosuchuser/x.png: {NOBODY}"):
        expanded(Path("~nosuchuser/x.png"))
    monkeypatch.setenv("OPSIN_HOME", "~nosuchuser/cache")
    with pytest.raises(OpsinError, match=NOBODY):
        home()
