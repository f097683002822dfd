from __future__ import annotations

import subprocess
import sys

import pytest

from opsin.core.errors import ModelError
from opsin.vision.published import PUBLISHED


@pytest.mark.parametrize(
    ("name", "size", "role", "frames", "tokens"),
    [
        ("llava-1.5", (480, 640), "single", 1, 576),
        ("llava-1.5", (480, 640), "multi", 1, 576),
        ("llava-next", (480, 640), "single", 1, 2340),
        ("llava-next", (672, 672), "multi", 1, 577),
        ("llava-onevision", (1080, 1920), "single", 1, 7269),
        ("llava-onevision", (1920, 1080), "single", 1, 7317),
        ("llava-onevision", (1500, 1000), "single", 1, 8721),
        ("llava-onevision", (384, 384), "single", 1, 1485),
        ("llava-onevision", (1080, 1920), "multi", 1, 730),
        ("llava-onevision", (1080, 1920), "video", 32, 6273),
        ("llava-onevision", (1080, 1920), "video", 1, 197),
        ("qwen2-vl", (480, 640), "single", 1, 391),
        ("qwen2-vl", (1080, 1920), "multi", 1, 2691),
        ("qwen2-vl", (5, 800), "single", 1, 29),
        ("qwen2-vl", (1080, 1920), "video", 20, 7200),
    ],
)
def test_published_numbers(name: str, size: tuple[int, int], role: str, frames: int, tokens: int) -> None:
    assert PUBLISHED[name].layout(*size, role, frames).tokens == tokens


def test_what_a_model_cannot_take_is_an_error_to_act_on() -> None:
    with pytest.raises(ModelError, match=r"10x2010 pixels \(HxW\) is 201.00:1; the limit is 200:1"):
        PUBLISHED["qwen2-vl"].layout(10, 2010, "single")


def test_they_are_known_without_torch() -> None:
    code = (
        "import sys, opsin.vision.published, opsin.vision.sampling; print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
