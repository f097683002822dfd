"""`opsin tokens`: exact numbers, in JSON and for people, and one line for what cannot be answered."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from opsin import cli
from tests.support.hub import hub_dir

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command here; its exit code."""

    def run(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["opsin", "tokens", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as caught:
            cli.app()
        return caught.value.code

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("llava-1.5 --size 480x640", 576),
        ("llava-next --size 480x640", 2340),
        ("llava-onevision --size 1080x1920", 7269),
        ("llava-onevision --size 1920x1080", 7317),
        ("llava-onevision --size 1500x1000 --role single", 8721),
        ("llava-onevision --size 384x384", 1485),
        ("llava-onevision --size 384x384 --role multi", 730),
        ("llava-onevision --size 480x640 --role video --frames 32", 6273),
        ("llava-onevision --size 480x640 --role video --frames 1", 197),
        ("qwen2-vl --size 480x640", 391),
        ("qwen2-vl --size 1080X1920", 2691),
        ("qwen2-vl --size 5x800", 29),
        ("qwen2-vl --size 1x200", 7),
        ("llava-onevision --size 10x2304", 892),
        ("llava-next --size 10x2304", 576),
        ("qwen2-vl --size 480x640 --role video --frames 9", 1955),
    ],
)
def test_published_models(tokens: Any, capsys: pytest.CaptureFixture[str], arguments: str, expected: int) -> None:
    assert tokens("--json", "--model", *arguments.split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens"] == sum(block["tokens"] for block in told["blocks"]) == expected


def test_what_the_json_says(tokens: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokens("--model", "llava-onevision", "--size", "1080x1920", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    plain = {"newline": 0, "tail": 0, "kept": None, "tiles": [1, 1], "pool": "bilinear", "t": 1}
    base = plain | {"rows": 27, "cols": 27, "tokens": 729}
    mosaic = plain | {"rows": 60, "cols": 108, "newline": 1, "tiles": [3, 5], "kept": [75, 135], "tokens": 6540}
    assert told == {
        "model": "llava-onevision",
        "tokens": 7269,
        "frames": None,
        "size": [1080, 1920],
        "role": "single",
        "canvas": [384, 384],
        "images": 16,
        "maps": 16,
        "map": [27, 27],
        "patches": 11_664,
        "blocks": [base, mosaic],
    }


def test_a_table_for_people(tokens: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokens("--model", "llava-onevision", "--size", "480x640", "--role", "video", "--frames", "32") == 0
    assert capsys.readouterr().out.splitlines() == [
        "llava-onevision, 32 frames of 480x640 (HxW)",
        "tokens     6,273",
        "canvas     32 x 384x384 pixels",
        "patches    23,328 = 32 x 27x27",
        "block      32 x 14x14 + 1 at the end",
    ]


def test_a_checkpoint_follows_its_own_limits(tokens: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = hub_dir(tmp_path, "qwen2_vl")  # at most 64 tokens
    assert tokens("--model", str(folder), "--size", "480x640", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tokens"], told["canvas"]) == (54, [168, 252])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("qwen2-vl --size 480", "--size '480': expected height and width in pixels, such as 480x640"),
        ("qwen2-vl --size axb", "--size 'axb': expected height and width"),
        ("qwen2-vl --size -3x5", "--size '-3x5': expected height and width"),
        ("qwen2-vl --size 480x640x3", "--size '480x640x3': expected height and width"),
        ("qwen2-vl --size 9999999999x9999999999", "expected height and width"),
        ("qwen2-vl --size 0x5", "--size 0x5: each side must be from 1 to 16,384 pixels"),
        ("llava-1.5 --size 20000x10", "--size 20000x10: each side must be from 1 to 16,384 pixels"),
        ("qwen2-vl --size 10x2010", "10x2010 pixels (HxW) is 201.00:1; the limit is 200:1"),
        ("qwen2vl --size 480x640", "unknown model 'qwen2vl': did you mean qwen2-vl? known are llava-1.5, llava-next,"),
        ("nowhere/at-all --size 480x640", "unknown model 'nowhere/at-all': known are llava-1.5,"),
        ("qwen2-vl --size 480x640 --role video", "--role video needs --frames N"),
        ("qwen2-vl --size 480x640 --frames 3", "--frames 3 is for videos: add --role video"),
    ],
)
def test_what_cannot_be_answered(tokens: Any, capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    assert tokens("--model", *arguments.split()) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""


@pytest.mark.parametrize("frames", ["0", "-1", "10001", "many"])
def test_absurd_numbers_of_frames(tokens: Any, capsys: pytest.CaptureFixture[str], frames: str) -> None:
    assert tokens("--model", "qwen2-vl", "--size", "480x640", "--role", "video", f"--frames={frames}") == 2
    assert "--frames" in capsys.readouterr().err


def test_a_folder_that_holds_no_checkpoint(tokens: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert tokens("--model", str(tmp_path), "--size", "480x640") == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_published_models_do_not_wait_for_torch() -> None:
    script = (
        "import sys; sys.argv = 'opsin tokens --model qwen2-vl --size 480x640 --json'.split()\n"
        "from opsin.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith("heavy: []\n")
