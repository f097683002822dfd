"""Configs and files that someone made up: refused at once, with the file's name, and never by a traceback."""

from __future__ import annotations

import copy
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.checkpoint.load import load, read_model_config
from opsin.checkpoint.model import read_config, write_model
from opsin.core.errors import CheckpointError, ModelError, OpsinError
from tests.support.hub import FAMILIES, change, hub_dir, hub_layout, read, write
from tests.support.models import tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEXT, VISION = "text_config", "vision_config"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava_next", {"image_grid_pinpoints": [[57, 57]]}, r"57x57 is not made of whole tiles"),
        ("llava_onevision", {"image_grid_pinpoints": [[56 * 11, 56 * 10]]}, r"110 tiles; the limit is 100"),
        ("llava", {TEXT: {"initializer_range": -1}}, r"initializer_range: Input should be greater"),
        ("llava", {TEXT: {"initializer_range": float("nan")}}, r"initializer_range: Input should be a finite number"),
        ("llava", {TEXT: {"rope_scaling": {"rope_type": "linear"}}}, r"rope type 'linear' needs factor"),
        (
            "llava",
            {TEXT: {"rope_scaling": {"rope_type": "llama3", "factor": 8}}},
            r"'llama3' needs low_freq_factor, hi",
        ),
        ("llava", {TEXT: {"rope_scaling": {"rope_type": "yarn"}}}, r"rope type 'yarn' needs factor"),
        (
            "llava",
            {TEXT: {"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": float("nan")}}},
            r"beta_fast: Input should be a finite number",
        ),
        (
            "llava",
            {TEXT: {"num_attention_heads": 6, "head_dim": None}},
            r"hidden_size 32 in num_attention_heads 6 is no whole",
        ),
        ("llava", {TEXT: {"num_key_value_heads": 3}}, r"num_attention_heads 4 is no multiple"),
        ("llava", {TEXT: {"head_dim": 7}}, r"heads of width 7: pairs of channels are turned"),
        ("llava", {VISION: {"num_attention_heads": 3}}, r"hidden_size 16 is no multiple of its 3 heads"),
        ("llava", {TEXT: {"layer_types": ["evil", "evil"]}}, r"layer_types\.0: Input should be 'full_attention'"),
        ("llava", {"vision_feature_layer": 40}, r"select_layer \(40,\): the tower has 3 layers"),
        ("llava", {"vision_feature_layer": -5}, r"select_layer \(-5,\): the tower has 3 layers"),
        ("qwen2_vl", {VISION: {"num_heads": 3}}, r"config\.embed_dim 16 in 3 heads"),
        ("llava", {TEXT: {"num_hidden_layers": 1024}}, r"1,024 layers of decoder\.lm\.model, .* the weights have 2"),
        ("llava", {VISION: {"num_hidden_layers": 1024}}, r"1,024 layers of encoder\.tower, .* the weights have 3"),
        ("qwen2_vl", {VISION: {"depth": 1024}}, r"1,024 layers of encoder\.vit, .* the weights have 2"),
    ],
)
def test_values_that_no_model_can_have(
    checkpoint: Callable[..., Path], family: str, changes: dict[str, Any], message: str
) -> None:
    folder = checkpoint(family)
    change(folder / "config.json", **changes)
    if "image_grid_pinpoints" in changes:
        change(folder / "preprocessor_config.json", image_grid_pinpoints=None)
    started = time.process_time()
    with pytest.raises((CheckpointError, ModelError), match=rf"config\.json: .*{message}"):
        load(folder)
    assert time.process_time() - started < 5


SHORT = {"shortest_edge": 84}
CROP = {"height": 56, "width": 56}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava", {"size": SHORT}, r"size \{'shortest_edge': 84\} and crop_size .*: opsin makes squares"),
        ("llava_next", {"size": SHORT}, r"opsin makes squares"),
        ("llava", {"crop_size": {"height": 56, "width": 28}}, r"opsin makes squares"),
        ("llava", {"size": {"height": 56, "width": 28}, "crop_size": None, "do_center_crop": None}, r"makes squares"),
        ("llava_onevision", {"size": {"height": 56, "width": 28}}, r"opsin makes squares"),
        ("llava", {"resample": 2}, r"resample: Input should be 3"),
        ("llava", {"rescale_factor": 1.0}, r"rescale_factor: Input should be less"),
        ("llava", {"rescale_factor": 1 / 127.5}, r"rescale_factor: Input should be less"),
        ("llava", {"image_std": [0.0, 0.5, 0.5]}, r"image_std\.0: Input should be greater"),
        ("llava", {"image_std": [float("nan"), 0.5, 0.5]}, r"image_std\.0: Input should be a finite number"),
        ("llava", {"image_mean": [1e300, 0.5, 0.5]}, r"image_mean\.0: Input should be less"),
        ("qwen2_vl", {"min_pixels": 100_000, "max_pixels": 5000}, r"min_pixels 100000 is more than max_pixels 5000"),
        ("llava", {"size": -3}, r"size"),
    ],
)
def test_values_of_preprocessors_that_opsin_does_not_follow(
    checkpoint: Callable[..., Path], family: str, changes: dict[str, Any], message: str
) -> None:
    folder = checkpoint(family)
    path = folder / "preprocessor_config.json"
    write(path, {key: value for key, value in (read(path) | changes).items() if value is not None})
    with pytest.raises((CheckpointError, ModelError), match=rf"{folder}.*config\.json: .*{message}"):
        read_model_config(folder)


@pytest.mark.parametrize(
    "spelled",
    [
        {"min_pixels": 6272, "max_pixels": 12544},
        {"size": {"min_pixels": 6272, "max_pixels": 12544}},
        {"size": {"shortest_edge": 6272, "longest_edge": 12544}},
        {"min_pixels": 6272, "max_pixels": 12544, "size": {"shortest_edge": 1, "longest_edge": 2}},
    ],
)
def test_limits_of_pixels_in_every_spelling(checkpoint: Callable[..., Path], spelled: dict[str, Any]) -> None:
    folder = checkpoint("qwen2_vl")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        write(folder / name, spelled)
    limits = read_model_config(folder).resolution.model_dump()
    assert (limits["min_pixels"], limits["max_pixels"]) == (6272, 12544)
    assert (limits["video_min_pixels"], limits["video_max_pixels"]) == (6272, 12544)


@pytest.mark.parametrize(
    "changes",
    [{"added_tokens": 5}, {"added_tokens": [{"id": "x", "content": "a"}]}, {"model": {"vocab": 3}}, {"model": None}],
)
def test_a_tokenizer_that_is_none(checkpoint: Callable[..., Path], changes: dict[str, Any]) -> None:
    folder = checkpoint("llava")
    write(folder / "tokenizer.json", read(folder / "tokenizer.json") | changes)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        load(folder)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The files of a checkpoint of opsin's own."""
    model, prepare = tiny_vlm(tmp_path / "made", encoder="clip")
    (tmp_path / "own").mkdir()
    write_model(tmp_path / "own", model, prepare.tokenizer, {})
    return tmp_path / "own"


def load_unsealed(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opsin.checkpoint.model.verify", lambda _path, **_options: {})
        load(folder)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("language", {"num_hidden_layers": 1_000_000}, r"1,000,000 layers of decoder\.lm\.model"),
        ("language", {"hidden_size": 10**9}, r"hidden_size is 1,000,000,000; it must be"),
        ("language", {"head_dim": 10**9}, r"language\.head_dim is 1,000,000,000; it must be"),
        ("language", {"num_hidden_layers": "two"}, r"num_hidden_layers must be a positive integer"),
        ("encoder", {"image_size": 1 << 17, "patch_size": 1}, r"131072x131072 patches"),
        ("encoder", {"num_hidden_layers": 10**6}, r"1,000,000 layers of encoder\.tower"),
    ],
)
def test_absurd_sizes_of_opsins_own_are_refused_at_once(
    own: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    value = read(own / "model.json")
    value["model"][part]["config"] |= changes
    write(own / "model.json", value)
    started = time.process_time()
    with pytest.raises(ModelError, match=rf"model\.json: .*{message}"):
        load_unsealed(own)
    assert time.process_time() - started < 5


def test_a_model_json_is_bounded(own: Path) -> None:
    (own / "model.json").write_text(" " * 2_000_001, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.json: 2,000,001 bytes, more than the 2,000,000"):
        read_config(own)


@pytest.mark.parametrize("name", ["/etc", "../made", "a/b", "..", "", "a\\b"])
def test_the_tokenizer_of_a_checkpoint_is_inside_of_it(own: Path, name: str) -> None:
    value = read(own / "model.json")
    value["model"]["language"]["tokenizer"] = name
    write(own / "model.json", value)
    with pytest.raises(CheckpointError, match=r"is not a folder of the checkpoint; not followed"):
        read_config(own)


JUNK = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        3,
        7,
        2**20,
        10**30,
        0.5,
        -1e300,
        float("nan"),
        "",
        "x",
        "default",
        [],
        [[1, 2]],
        {},
        {"a": 1},
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON file; long lists and tables (vocabularies) by their first entries."""
    if isinstance(value, dict | list):
        for key in list(value if isinstance(value, dict) else range(len(value)))[:20]:
            yield (*path, key)
            yield from places(value[key], (*path, key))


def mutated(value: Any, data: st.DataObject) -> Any:
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(places(value), key=str)))
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if data.draw(st.booleans()) or isinstance(inner, list):
            inner[path[-1]] = copy.deepcopy(data.draw(JUNK))
        else:
            del inner[path[-1]]
        if not value:
            break
    return value


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mutated")
    made = {family: hub_layout(hub_dir(folder, family), folder / f"{family}-hub") for family in FAMILIES}
    model, prepare = tiny_vlm(folder / "made", encoder="siglip", connector="q_former", fusion="gated_cross_attention")
    made["own"] = folder / "own"
    made["own"].mkdir()
    write_model(made["own"], model, prepare.tokenizer, {})
    return made


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.json"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_only_errors_of_opsin_escape(originals: dict[str, Path], file: str, data: st.DataObject) -> None:
    folder = originals["own" if file == "model.json" else data.draw(st.sampled_from(FAMILIES))]
    path = folder / file
    valid = path.read_text(encoding="utf-8")
    try:
        write(path, mutated(json.loads(valid), data))
        with suppress(OpsinError):
            load_unsealed(folder)
    finally:
        path.write_text(valid, encoding="utf-8")
