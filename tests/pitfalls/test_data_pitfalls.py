"""What went wrong with data in other projects, where no other test would fail if it went wrong here.

`docs/pitfalls.md` lists all of them, with the tests that stand elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.core.types import Clip, Conversation, Picture, Turn
from opsin.data import collate as collate_module
from opsin.data.collate import collate
from opsin.data.corpus import Corpus, Part
from opsin.data.example import Preparation, make_example
from opsin.data.index import index_of
from opsin.data.loader import Loader
from opsin.data.plan import Budget, plan_epoch
from opsin.data.sources import LlavaFile
from opsin.train.data import plan_steps, read_stage
from tests.support.models import dialogue, draw_picture, examples_of, packed, stage_of, tiny_vlm, write_data
from tests.support.videos import CONTAINERS, write_video

if TYPE_CHECKING:
    from opsin.model.vlm import Vlm

NATIVE = {"encoder": "native_vit", "connector": "patch_merger", "resolution": "native", "positions": "mrope"}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vlm, Preparation]:
    return tiny_vlm(tmp_path_factory.mktemp("native"), **NATIVE)


def corpus_of(path: Path, prepare: Preparation) -> Corpus:
    source = LlavaFile(path=path)
    index = index_of(source, prepare)
    assert not index.problems
    return Corpus(prepare, [Part("data", source, index, np.arange(len(index)), index.costs)])


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are decoded from now on."""
    opened: list[str] = []
    real = collate_module.open_picture

    def watch(picture: Picture) -> Image.Image:
        assert picture.path is not None
        opened.append(picture.path.name)
        return real(picture)

    monkeypatch.setattr(collate_module, "open_picture", watch)
    return opened


def test_what_samples_cost_is_known_from_headers(native: tuple[Vlm, Preparation], tmp_path: Path) -> None:
    """hiyouga/LLaMA-Factory #8807; modelscope/ms-swift #4076: hours of opening pictures before the first step.

    Pictures that hold nothing behind their header cost what the whole ones do.
    """
    whole = corpus_of(write_data(tmp_path / "whole"), native[1])
    path = write_data(tmp_path / "cut")
    for picture in (tmp_path / "cut" / "pictures").iterdir():
        picture.write_bytes(picture.read_bytes()[:45])
    assert np.array_equal(corpus_of(path, native[1]).costs.columns(), whole.costs.columns())


def test_going_on_opens_nothing_of_what_was_seen_before(
    native: tuple[Vlm, Preparation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-cosmos/cosmos-rl #234: to resume, all pictures and videos before are decoded once more."""
    corpus = corpus_of(write_data(tmp_path, pictures=6, texts=0), native[1])
    packs = plan_epoch(corpus.costs, Budget(int(corpus.costs.tokens.max()), 10**6), seed=0, epoch=0).packs
    assert len(packs) == 6
    opened = watched(monkeypatch)
    with Loader(corpus, native[1], packs[4:]) as loader:
        list(loader)
    assert opened == [f"{sample}.png" for pack in packs[4:] for sample in pack.samples]


def test_no_neighbour_takes_the_place_of_a_sample_that_cannot_be_read(
    native: tuple[Vlm, Preparation], tmp_path: Path
) -> None:
    """LLaVA-NeXT and Qwen's finetune: for an unreadable sample i they train on i + 1 once more, and count nothing."""
    path = write_data(tmp_path, pictures=5, texts=1)
    (tmp_path / "pictures" / "2.png").write_bytes(b"no picture")
    stage = stage_of({"connector": {"lr": 1e-3}}, data=[{"kind": "llava", "path": str(path)}], batch_tokens=200)
    data = read_stage(stage, native[0].config, native[1].tokenizer, skip_bad=True)
    seen = [data.examples.id(i) for step in plan_steps(data, stage, 0) for pack in step for i in pack.samples]
    assert sorted(seen) == ["picture-0", "picture-1", "picture-3", "picture-4", "text-0"]
    (refused,) = data.found.refused
    assert "(picture-2)" in refused


DRAW = """
import json
import numpy as np
from opsin.data.costs import Costs
from opsin.data.mixture import Portion, draw
from opsin.data.plan import Budget, plan_epoch
chosen = draw(Portion(number=40), "charts", 100, 40, seed=7, epoch=2)
costs = Costs.from_rows([(3 + n % 9, 0, 1, n % 5, 0) for n in range(100)])
plan = plan_epoch(costs, Budget(32, 20), seed=7, epoch=2, samples=chosen)
print(json.dumps([pack.samples for pack in plan.packs]))
"""


def test_every_process_draws_and_packs_the_same_samples() -> None:
    """Qwen's finetune `name%N` and LLaVA-NeXT's `random:` sample without a seed in every process: ranks differ."""
    printed = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", DRAW]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
        printed.add(done.stdout)
    (only,) = printed
    assert sum(map(len, json.loads(only))) == 40


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_decoders_keep_no_memory_and_no_file(kind: str, tmp_path: Path) -> None:
    """LLaVA-VL/LLaVA-NeXT #196, hpcaitech/Open-Sora #526: decoders leak the host's memory until the job dies."""
    assert kind in CONTAINERS
    prepare = tiny_vlm(tmp_path)[1]
    video = write_video(tmp_path / f"a.{kind}", range(12), size=(128, 128))
    picture = Picture(path=draw_picture(tmp_path / "a.png", 1, (400, 300)))
    turns = (Turn("user", (Clip(path=video), picture, "What?")), Turn("assistant", ("A square.",)))

    def decode(times: int) -> tuple[int, int]:
        for _ in range(times):
            collate([make_example(Conversation("a", turns), prepare)], prepare)
        return resident(), len(list(Path("/proc/self/fd").iterdir()))

    memory, files = decode(15)
    after, still = decode(60)
    assert still == files
    assert after - memory < 4 << 20  # decoders that are not let go of are 11 MB of Matroska, 100 MB of MP4


def test_pictures_may_stand_side_by_side(native: tuple[Vlm, Preparation], tmp_path: Path) -> None:
    """transformers 5.23: two images without a token of text between them are an error."""
    pictures = [Picture(path=draw_picture(tmp_path / f"{n}.png", n, (64, 32 + 32 * n))) for n in range(2)]
    turns = (Turn("user", (*pictures, "Both?")), Turn("assistant", ("Yes.",)))
    batch = packed([Conversation("a", turns)], native[1])
    assert len(batch.layouts) == 2
    first, second = (layout.tokens for layout in batch.layouts)
    assert batch.visual_N.tolist() == list(range(int(batch.visual_N[0]), int(batch.visual_N[0]) + first + second))
    assert torch.isfinite(native[0](batch)).all()
    behind = batch.positions_AT[:, batch.visual_N[first]]
    assert (behind > batch.positions_AT[:, batch.visual_N[:first]].max()).all()


@pytest.mark.parametrize("rate", [1, 2, 8, 30])
def test_frames_have_moments_of_their_own_however_many_there_are_in_a_second(
    native: tuple[Vlm, Preparation], tmp_path: Path, rate: int
) -> None:
    """EvolvingLMMs-Lab/lmms-eval #1393, QwenLM/Qwen3-VL #1031: above two frames a second their time ids collapse."""
    video = write_video(tmp_path / "a.mkv", range(8), rate=rate)
    clip = Clip(path=video, taken=tuple(range(8)))
    turns = (Turn("user", (clip, "What moves?")), Turn("assistant", ("A square.",)))
    example = make_example(Conversation("a", turns), native[1])
    maps = example.layouts[0].grid.t
    assert maps == 4  # two frames each
    assert len(set(example.positions_AT[0, example.visual_T].tolist())) == maps


def test_a_picture_is_resized_once_and_alike_in_training_and_in_use(
    native: tuple[Vlm, Preparation], tmp_path: Path
) -> None:
    """QwenLM/Qwen3-VL #935, #1025; hiyouga/LLaMA-Factory #7690, #6925: resized twice, and not as in serving.

    What is of a size that the model takes comes through bit for bit; anything else is the one resize of Pillow.
    """
    prepare = native[1]
    grains = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    Image.fromarray(grains).save(tmp_path / "fits.png")
    Image.fromarray(grains).resize((45, 71)).save(tmp_path / "other.png")
    pictures = [Picture(path=tmp_path / name) for name in ("fits.png", "other.png")]
    asked = dialogue("a", "Both?", "Yes.", pictures)
    (example,) = examples_of([asked], prepare)
    prompt = make_example(Conversation("a", asked.turns[:-1]), prepare, open_for_generation=True)
    trained, used = (collate([one], prepare).pixels_X for one in (example, prompt))
    assert trained is not None
    assert used is not None
    assert trained.equal(used)
    height, width = example.layouts[1].canvas
    with Image.open(tmp_path / "other.png") as image:
        once = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    expected = np.concatenate([one.transpose(2, 0, 1).reshape(-1) for one in (grains, once)])
    assert np.array_equal(trained.numpy(), expected)
