"""Paths in configuration values."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from opsin.core.paths import ExistingFile, ExistingFolder


class Files(BaseModel):
    file: ExistingFile
    folder: ExistingFolder


def test_paths_are_anchored(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    found = Files.model_validate({"file": "a.txt", "folder": "."}, context={"folder": tmp_path})
    assert found == Files(file=tmp_path / "a.txt", folder=tmp_path)


def test_the_home_of_nobody_is_a_problem_of_the_key(tmp_path: Path) -> None:
    value = {"file": "~nosuchuser/a.txt", "folder": "~nosuchuser"}
    with pytest.raises(ValidationError) as caught:
        Files.model_validate(value, context={"folder": tmp_path})
    messages = {error["loc"][0]: error["msg"] for error in caught.value.errors()}
    assert messages.keys() == {"file", "folder"}
    assert "~nosuchuser/a.txt: no home folder is known for ~nosuchuser; write the path" in messages["file"]
