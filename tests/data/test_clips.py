"""Clips in examples: frames as pictures, or those that a model takes of a video file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import PictureError, VideoError
from opsin.core.types import Clip, Conversation, Medium, Picture, Turn
from opsin.data.collate import collate, medium_pixels
from opsin.data.example import Preparation, make_example
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from tests.support.models import build, dialogue, draw_picture, examples_of, model_value, packed, tiny_vlm
from tests.support.tokenizers import chatml_tokenizer_dir
from tests.support.videos import numbered, write_video

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [Picture(path=draw_picture(tmp_path / f"{n}.png", n, (60, 40))) for n in range(5)]


def model_with(folder: Path, resolution: str, video: dict[str, Any] | None = None) -> tuple[Vlm, Preparation]:
    """A native ViT, which takes frames in pairs, with a rule for the frames of video files."""
    value = model_value(chatml_tokenizer_dir(folder), encoder="native_vit", resolution=resolution)
    model = build(value | ({"video": video} if video else {}))
    return model.eval(), preparation(model.config, Tokenizer.load(folder / "chatml"))


def asked(*media: Medium) -> Conversation:
    return Conversation("a", (Turn("user", (*media, "What?")), Turn("assistant", ("Yes.",))), "data.json:7")


def test_frames_of_different_sizes_are_refused_by_name(tmp_path: Path, pictures: list[Picture]) -> None:
    other = Picture(path=draw_picture(tmp_path / "other.png", 9, (40, 60)))
    with pytest.raises(PictureError) as caught:
        make_example(asked(Clip((*pictures[:2], other))), tiny_vlm(tmp_path)[1])
    assert str(caught.value) == (
        f"data.json:7: (a) {other.path}: 60x40 pixels (HxW), but the clip's first frame has 40x60; all frames of a "
        "clip must have one size"
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_an_odd_number_of_frames_is_filled_up_with_the_last(
    tmp_path: Path, pictures: list[Picture], count: int
) -> None:
    model, prepare = model_with(tmp_path, "native")
    clip = Clip(tuple(pictures[:count]))
    (example,) = examples_of([asked(clip)], prepare)
    (layout,) = example.layouts
    pairs = (count + 1) // 2
    assert (layout.role, layout.frames, layout.grid.t) == ("video", 2 * pairs, pairs)
    pixels = medium_pixels(clip, layout, prepare)
    assert pixels.shape == (2 * pairs, 3, *layout.canvas)
    if count % 2:
        assert np.array_equal(pixels[-1], pixels[-2])
        filled = Clip((*clip.frames, clip.frames[-1]))
        with torch.no_grad():
            assert torch.equal(model(packed([asked(clip)], prepare)), model(packed([asked(filled)], prepare)))


@pytest.mark.parametrize("resolution", ["square", "any_res", "native"])
def test_a_clip_of_one_frame_is_a_clip(tmp_path: Path, pictures: list[Picture], resolution: str) -> None:
    model, prepare = model_with(tmp_path, resolution)
    batch = packed([asked(Clip(tuple(pictures[:1])))], prepare)
    assert [layout.role for layout in batch.layouts] == ["video"]
    assert bool(model(batch).isfinite().all())


def test_every_frame_of_a_clip_matters(tmp_path: Path, pictures: list[Picture]) -> None:
    for resolution in ("square", "any_res", "native"):
        model, prepare = model_with(tmp_path, resolution)
        batch = packed([asked(Clip(tuple(pictures[:4])))], prepare)
        assert batch.pixels_X is not None
        frames = batch.pixels_X.view(4, -1)
        with torch.no_grad():
            before = model.look(batch)
            for frame in range(4):
                frames[frame] ^= 255
                after = model.look(batch)
                assert before is not None
                assert after is not None
                assert not torch.allclose(after, before)
                before = after


def test_a_clip_beside_a_picture_does_not_make_it_one_of_several(tmp_path: Path, pictures: list[Picture]) -> None:
    prepare = model_with(tmp_path, "any_res")[1]
    clip = Clip(tuple(pictures[:3]))

    def planned(*media: Medium) -> list[tuple[str, int]]:
        return [(layout.role, layout.frames) for layout in make_example(asked(*media), prepare).layouts]

    ((_, tiles),) = planned(pictures[3])
    assert tiles > 1
    assert planned(pictures[3], clip) == [("single", tiles), ("video", 3)]
    assert planned(clip, pictures[3]) == [("video", 3), ("single", tiles)]
    assert planned(pictures[3], clip, pictures[4]) == [("multi", 1), ("video", 3), ("multi", 1)]
    assert planned(clip, clip) == [("video", 3), ("video", 3)]


def test_of_a_video_file_the_models_rule_chooses_the_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", range(40))  # 4 seconds
    prepare = model_with(tmp_path, "square", {"kind": "llava", "rate": 1.0})[1]
    example = make_example(asked(Clip(path=path)), prepare)
    assert example.media == (Clip(path=path, taken=(0, 10, 20, 30)),)
    assert (example.layouts[0].role, example.layouts[0].frames) == ("video", 4)
    frames = [Picture(path=tmp_path / f"frame{n}.png") for n in (0, 10, 20, 30)]
    for number, frame in zip((0, 10, 20, 30), frames, strict=True):
        assert frame.path is not None
        Image.fromarray(numbered(number)).save(frame.path)
    of_file = medium_pixels(*example.seen[0], prepare).astype(int)
    of_frames = medium_pixels(Clip(tuple(frames)), example.layouts[0], prepare).astype(int)
    assert np.abs(of_file - of_frames).mean() < 8  # what compression costs


def test_frames_that_were_chosen_before_are_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", range(20))
    prepare = model_with(tmp_path, "native")[1]
    example = make_example(asked(Clip(path=path, taken=(3, 5, 11))), prepare)
    assert example.media == (Clip(path=path, taken=(3, 5, 11)),)
    assert example.layouts[0].frames == 4


def test_a_video_file_that_fails_is_named_with_its_sample(tmp_path: Path) -> None:
    prepare = model_with(tmp_path, "native", {"kind": "qwen"})[1]
    short = write_video(tmp_path / "short.avi", range(1))
    with pytest.raises(VideoError) as caught:
        make_example(asked(Clip(path=short)), prepare)
    assert str(caught.value).startswith(f"data.json:7: (a) {short}: 0 frames are to be taken of a video of 1")
    path = write_video(tmp_path / "a.mkv", range(30))
    example = make_example(asked(Clip(path=path)), prepare)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError) as cut:
        collate([example], prepare)
    assert str(cut.value).startswith(f"data.json:7: (a) {path}: cut short")


def test_a_clip_of_a_file_goes_through_a_model(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", range(30))
    for resolution in ("square", "any_res", "native"):
        model, prepare = model_with(tmp_path, resolution, {"kind": "even", "count": 3})
        batch = packed([dialogue("a", "Hi?", "Yes."), asked(Clip(path=path))], prepare)
        assert len(batch.visual_N) == batch.layouts[0].tokens
        with torch.no_grad():
            assert bool(model(batch).isfinite().all())
