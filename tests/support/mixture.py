"""The mixture of all modalities, small: drawn stamps, a stand-in for Easy-VQA, tiny videos, a tiny model."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import yaml

from opsin.core.files import write_json
from opsin.quickstart.drawn import DRAWN_GROUPS, draw_stamps
from opsin.quickstart.mixture import SHOWN, Mixture, MixtureSize
from opsin.synthesize.context import Vocabulary
from tests.support.easy_vqa import easy_vqa_wheel
from tests.support.models import model_value
from tests.support.tokenizers import chatml_tokenizer_dir
from tests.support.videos import write_video

if TYPE_CHECKING:
    from pathlib import Path

SIZE = MixtureSize(captions=8, shapes=6, scenes=4, pairs=6, texts=5, quiz=40, side=64)


def write_tiny_mixture(folder: Path, size: MixtureSize = SIZE) -> Path:
    """The mixture's data, as `python -m opsin.quickstart.mixture` writes it, in a new folder."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for seconds, name in enumerate(SHOWN, start=1):
        write_video(sources / f"{name}.mp4", range(10 * seconds))
    stamps = draw_stamps().stamps
    vocabulary = Vocabulary(DRAWN_GROUPS, tuple(stamp.thing() for stamp in stamps))
    data = folder / "data"
    Mixture(stamps, vocabulary, data, size).write(easy_vqa_wheel(sources / "easy_vqa.whl"), sources)
    return data


def tiny_recipe(folder: Path) -> Path:
    """The mixture's own recipe beside its data, with a model that answers in milliseconds."""
    text = files("opsin.recipes").joinpath("mixture.yaml").read_text(encoding="utf-8")
    value = yaml.safe_load(text)
    model = model_value(chatml_tokenizer_dir(folder), max_position_embeddings=4096)
    tiles = {"kind": "any_res", "size": 64, "pinpoints": [[64, 64], [128, 128]]}
    value |= {"precision": "fp32", "model": model | {"resolution": tiles, "video": value["model"]["video"]}}
    align, instruct = value["stages"]
    align |= {"resolution": {"kind": "square", "size": 64}, "train": {"connector": {"lr": 1e-3}}, "workers": 0}
    instruct |= {"train": {"connector": {"lr": 1e-3}, "language": {"lr": 1e-3}}, "batch_tokens": 1024, "workers": 0}
    path = folder / "recipe.json"
    write_json(path, value)
    return path
