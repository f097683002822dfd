"""What prepares a model's inputs: a stage's own resolution, and what names everything that examples depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opsin.checkpoint.prepare import preparation
from opsin.core.errors import ModelError
from opsin.core.types import Picture
from opsin.data.example import make_example
from opsin.model.config import ModelConfig
from opsin.text.templates import VicunaV1
from opsin.text.tokenizer import Tokenizer
from opsin.vision.resolution import AnyRes, Native, Square
from tests.support.models import dialogue, draw_picture, encoder_value, model_value
from tests.support.tokenizers import chatml_tokenizer_dir, llama_tokenizer_dir


def parts(folder: Path, changes: dict[str, Any] | None = None, **kinds: Any) -> tuple[ModelConfig, Tokenizer]:
    tokenizer_dir = chatml_tokenizer_dir(folder)
    value = model_value(tokenizer_dir, **({"encoder": "native_vit"} | kinds)) | (changes or {})
    return ModelConfig.model_validate(value).resolved(), Tokenizer.load(tokenizer_dir)


def test_a_stage_can_have_a_resolution_of_its_own(tmp_path: Path) -> None:
    config, tokenizer = parts(tmp_path, resolution="any_res")
    sample = dialogue("a", "What?", "Yes.", [Picture(path=draw_picture(tmp_path / "a.png", 1, (96, 64)))])
    own = make_example(sample, preparation(config, tokenizer))
    staged = make_example(sample, preparation(config, tokenizer, resolution=Square(size=32)))
    assert own.layouts[0] == config.layout(64, 96, "single")
    assert (staged.layouts[0].canvas, staged.layouts[0].tokens) == ((32, 32), 4)


def test_a_resolution_that_the_model_cannot_take_is_refused(tmp_path: Path) -> None:
    config, tokenizer = parts(tmp_path, encoder="clip")
    with pytest.raises(ModelError, match="native resolution, but the clip encoder has position embeddings"):
        preparation(config, tokenizer, resolution=Native())
    with pytest.raises(ModelError, match="resolution size 48 but the clip encoder"):
        preparation(config, tokenizer, resolution=Square(size=48))


def test_newlines_that_the_model_never_had_are_refused(tmp_path: Path) -> None:
    config, tokenizer = parts(tmp_path)
    tiles = AnyRes(size=32, pinpoints=((64, 64),))
    with pytest.raises(ModelError) as caught:
        preparation(config, tokenizer, resolution=tiles)
    assert str(caught.value) == (
        "a resolution any_res with newlines, but the model has no newline vector, since its own resolution is square "
        "without them; put the resolution with newlines into 'model', or set newline: false"
    )
    preparation(config, tokenizer, resolution=tiles.model_copy(update={"newline": False}))
    latents, tokenizer = parts(tmp_path / "latents", connector="perceiver")  # rows of latents do not end
    preparation(latents, tokenizer, resolution=tiles)


def test_the_digest_names_what_examples_depend_on(tmp_path: Path) -> None:
    config, tokenizer = parts(tmp_path)
    digest = preparation(config, tokenizer).digest
    assert len(digest) == 64
    assert preparation(*parts(tmp_path / "again")).digest == digest
    wider, _ = parts(tmp_path / "wider", hidden_size=48, head_dim=12)
    assert preparation(wider, tokenizer).digest == digest  # another language model reads the same examples
    other_tokenizer = Tokenizer.load(llama_tokenizer_dir(tmp_path))
    found = {
        preparation(config, tokenizer, resolution=Square(size=64)).digest,
        preparation(config, tokenizer, template=config.template.model_copy(update={"system": "Hi."})).digest,
        preparation(config, other_tokenizer, template=VicunaV1()).digest,
        preparation(parts(tmp_path / "a", connector="average_pool")[0], tokenizer).digest,
        preparation(parts(tmp_path / "b", encoder="clip")[0], tokenizer).digest,
        preparation(parts(tmp_path / "c", positions="mrope")[0], tokenizer).digest,
        preparation(parts(tmp_path / "d", fusion="gated_cross_attention")[0], tokenizer).digest,
        preparation(parts(tmp_path / "e", {"video": {"kind": "even"}})[0], tokenizer).digest,
    }
    assert len(found - {digest}) == 8


def test_the_digest_tells_towers_that_see_all_of_a_picture_from_those_that_trim_it(tmp_path: Path) -> None:
    encoder = {"interpolate_positions": True}
    kept, trimmed = (
        parts(
            tmp_path,
            {"encoder": encoder_value("siglip", image_size=side) | encoder},
            encoder="siglip",
            resolution="native",
        )
        for side in (32, 48)
    )
    assert (kept[0].tower.trims, trimmed[0].tower.trims) == (False, True)
    assert preparation(*kept).digest != preparation(*trimmed).digest


def test_the_digest_follows_every_file_of_the_tokenizer(tmp_path: Path) -> None:
    folder = chatml_tokenizer_dir(tmp_path)
    before = Tokenizer.load(folder).digest
    assert Tokenizer.load(folder).digest == before
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "x"}))
    assert Tokenizer.load(folder).digest != before
