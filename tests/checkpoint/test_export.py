from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from typer.testing import CliRunner

from opsin.checkpoint.compare import Comparison, ask, compare
from opsin.checkpoint.export import export
from opsin.checkpoint.load import load
from opsin.checkpoint.model import Loaded
from opsin.checkpoint.shards import Weights
from opsin.cli import app
from opsin.core.errors import CheckpointError, ModelError
from opsin.core.types import Conversation, Picture, Turn
from opsin.data.example import make_example
from opsin.model.vlm import Vlm
from opsin.text.templates import ChatML, Plain, VicunaV1
from opsin.text.tokenizer import Tokenizer
from opsin.vision.any_res import AnyRes
from opsin.vision.resolution import Native, Square
from tests.support.hub import FAMILIES, hub_dir, media_of, read, tokenizer_dir, tower_dir
from tests.support.models import build, draw_picture, model_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = (dict(Weights.of(folder).read(Weights.of(folder).stored)) for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def with_config(loaded: Loaded, **changes: Any) -> Loaded:
    loaded.model.config = loaded.model.config.model_copy(update=changes)
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_gives_the_same_tensors_by_name(
    checkpoint: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    folder = checkpoint(family, "hub")
    loaded = load(folder)
    done = export(loaded, tmp_path / "out")
    assert done.family == family
    assert max(c.difference for c in done.comparisons) < 1e-4
    assert_same(folder, done.path)
    again = load(done.path)
    drop = {"language": {"tokenizer"}}
    assert again.model.config.model_dump(exclude=drop) == loaded.model.config.model_dump(exclude=drop)
    ours, theirs = read(folder / "config.json"), read(done.path / "config.json")
    named = [key for key in ours if key.endswith(("_index", "_token_id", "tie_word_embeddings")) and "os_" not in key]
    assert {key: theirs.get(key) for key in named} == {key: ours[key] for key in named if key != "pad_token_id"} | (
        {"pad_token_id": None} if "pad_token_id" in named else {}
    )


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_from_the_original_to_the_hub_and_back(checkpoint: Callable[..., Path], tmp_path: Path, family: str) -> None:
    tower = tower_dir(checkpoint(family), tmp_path / "tower")
    original = load(checkpoint(family, "original"), vision_tower=tower)
    done = export(original, tmp_path / "out")
    assert_same(checkpoint(family, "hub"), done.path)
    resolution = load(done.path).model.config.resolution
    if isinstance(resolution, AnyRes):
        assert resolution.rule == "transformers"
        # Canvases are tried in the original's order, whose pairs are (width, height).
        for size in ((20, 31), (50, 50), (112, 60), (300, 100)):
            tokens = original.model.config.layout(*size, "single").tokens
            assert load(done.path).model.config.layout(*size, "single").tokens == tokens
    else:
        assert resolution == Square(size=56, fit="pad")


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_model(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = hub_dir(tmp_path, family, tie_word_embeddings=True, dtype=dtype)
    done = export(load(folder), tmp_path / "out")
    assert not [name for name in load_file(done.path / "model.safetensors") if "lm_head" in name]
    assert read(done.path / "config.json")["tie_word_embeddings"] is True
    assert all(c.agrees for c in done.comparisons)
    assert {t.dtype for t in load_file(done.path / "model.safetensors").values()} == {dtype}


def test_mixed_types_become_the_one_that_the_model_computes_in(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load(checkpoint("llava"))
    loaded.model.encoder.to(torch.bfloat16)  # as training leaves it: frozen parts in bfloat16, trained ones in float32
    loaded.model.precision = "bf16"
    done = export(loaded, tmp_path / "out")
    tensors = load_file(done.path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert read(done.path / "config.json")["torch_dtype"] == "bfloat16"
    assert torch.equal(tensors["language_model.lm_head.weight"], loaded.model.decoder.head_weight.bfloat16())
    assert loaded.model.decoder.head_weight.dtype == torch.float32


def test_large_models_are_sharded(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint("llava")
    done = export(load(folder), tmp_path / "out", shard_bytes=100_000)
    files = sorted(path.name for path in done.path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert all((done.path / name).stat().st_size < 120_000 for name in files)
    index = read(done.path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    assert_same(folder, done.path)


@pytest.mark.parametrize(("family", "spare"), [("llava", 0), ("llava_onevision", 1), ("qwen2_vl", 40)])
def test_tokens_for_media_are_added_where_they_lack(tmp_path: Path, family: str, spare: int) -> None:
    folder = tokenizer_dir(family, tmp_path / "bare", media=False)
    around = ("<|vision_start|>", "<|vision_end|>") if family == "qwen2_vl" else None
    if around is not None:  # the template of such a model needs them, so that its tokenizer has them
        backend = Backend.from_file(str(folder / "tokenizer.json"))
        backend.add_special_tokens(list(around))
        backend.save(str(folder / "tokenizer.json"))
    bare = Tokenizer.load(folder)
    rows = bare.vocab_size + spare  # rows beyond the tokenizer's ids, as published models have them
    value = load(hub_dir(tmp_path, family)).model.config.model_dump()
    value["language"]["config"] |= {"vocab_size": rows}
    value["template"] = {"kind": "vicuna_v1"} if family == "llava" else {"kind": "chatml", "around_picture": around}
    model = build(value)
    done = export(Loaded(model, bare, tmp_path, {}), tmp_path / "out")
    tokenizer, config = Tokenizer.load(done.path), read(done.path / "config.json")
    ids = [tokenizer.control(token) for token in media_of(family) if token not in (around or ())]
    assert sorted(ids) == list(range(bare.vocab_size, bare.vocab_size + len(ids)))
    grown = rows if max(ids) < rows else -(-(max(ids) + 1) // 64) * 64
    assert (grown > rows) is (family != "qwen2_vl")
    tensors = load_file(done.path / "model.safetensors")
    prefix = "" if family == "qwen2_vl" else "language_model."
    embedding, head = tensors[f"{prefix}model.embed_tokens.weight"], tensors[f"{prefix}lm_head.weight"]
    assert embedding.shape[0] == head.shape[0] == grown
    assert (config if family == "qwen2_vl" else config["text_config"])["vocab_size"] == grown
    assert torch.equal(embedding[:rows], model.decoder.input_weight)
    assert tokenizer.encode("A cat.") == bare.encode("A cat.")
    hidden = torch.randn(50, head.shape[1])
    assert int((hidden @ head.T).argmax(-1).max()) < rows  # rows that were added are never the likeliest


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_prompt_as_opsin_does(
    checkpoint: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    loaded = load(checkpoint(family))
    done = export(loaded, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(done.path)
    prepare = loaded.preparation
    talk = [("user", "What is it? é"), ("assistant", "A cat."), ("user", "Why?\nSay.")]
    for system in ([], [("system", "Be brief.")]):
        turns = tuple(Turn(role, (text,)) for role, text in [*system, *talk])  # type: ignore[arg-type]
        ours = make_example(Conversation("a", turns), prepare, open_for_generation=True).tokens_T
        messages = [{"role": role, "content": text} for role, text in [*system, *talk]]
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert theirs(text)["input_ids"] == ours.tolist()


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.filterwarnings("ignore")
def test_transformers_processor_makes_the_same_inputs(
    checkpoint: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    loaded = load(checkpoint(family))
    done = export(loaded, tmp_path / "out")
    picture = draw_picture(tmp_path / "a.png", 3, (100, 80))
    prepare = loaded.preparation
    turn = Turn("user", (Picture(path=picture), "\nWhat is it?"))
    example = make_example(Conversation("a", (turn,)), prepare, open_for_generation=True)
    processor = AutoProcessor.from_pretrained(done.path)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=text, images=Image.open(picture), return_tensors="pt")
    ids = inputs["input_ids"][0]
    assert torch.equal(torch.from_numpy(example.visual_T), ids == read(done.path / "config.json")["image_token_index"])
    assert ids[~torch.from_numpy(example.visual_T)].tolist() == example.tokens_T[~example.visual_T].tolist()
    pixels = prepare.resolution.pixels([Image.open(picture).convert("RGB")], example.layouts[0], prepare.mean)
    ours = loaded.model.encoder.normalise(torch.from_numpy(pixels.copy()))  # type: ignore[operator]
    assert float((ours - inputs["pixel_values"].view_as(ours)).abs().max()) < 1 / 255 / 0.26


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_files_of_processors(
    checkpoint: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    done = export(load(checkpoint(family)), tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(done.path, backend="pil")
    resolution = load(done.path).model.config.resolution
    video = read(done.path / "video_preprocessor_config.json")
    if isinstance(resolution, Native):
        assert processor.size["longest_edge"] == resolution.max_pixels == video["max_pixels"]
        assert (processor.merge_size, processor.patch_size, processor.temporal_patch_size) == (2, 14, 2)
    else:
        assert list(processor.image_mean) == [0.5] * 3 == video["image_mean"]
        assert read(done.path / "processor_config.json")["num_image_tokens"] == 16


def test_an_answer_ends_where_it_ends_for_opsin(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load(checkpoint("qwen2_vl"))
    done = export(loaded, tmp_path / "out")
    assert read(done.path / "generation_config.json")["eos_token_id"] == [loaded.tokenizer.control("<|im_end|>")]


def test_nothing_is_overwritten_and_nothing_is_left_behind(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(checkpoint("llava"))
    target = tmp_path / "new" / "out"
    target.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="exists already; export to a new directory"):
        export(loaded, target)
    target.rmdir()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opsin.checkpoint.export.save_file", full)
    with pytest.raises(CheckpointError, match=r"could not be written \(No space left on device\); nothing was left"):
        export(loaded, target)
    assert list((tmp_path / "new").iterdir()) == []


def test_logits_that_differ_are_an_error(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [Comparison("image", 3, 0.5), Comparison("video", 3, float("nan"))]
    monkeypatch.setattr("opsin.checkpoint.proof.compare", lambda *_: wrong)
    with pytest.raises(ModelError, match=r"are not the model's: image by 0\.5, video by nan \(limit 0\.001\)"):
        export(load(checkpoint("llava")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "name", "seen"),
    [
        ("llava", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", ["image"]),
        ("llava_onevision", "image_newline", ["image", "video"]),
        ("qwen2_vl", "visual.merger.mlp.2.bias", ["image", "video"]),
        ("qwen2_vl", "model.norm.weight", ["text", "image", "video"]),
    ],
)
def test_the_comparison_sees_one_altered_tensor(
    checkpoint: Callable[..., Path], family: str, name: str, seen: list[str]
) -> None:
    folder = checkpoint(family)
    loaded = load(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name] += 0.3 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = {token: loaded.tokenizer.control(token) for token in media_of(family)}
    asked = ask(loaded.model, loaded.preparation, family)  # type: ignore[arg-type]
    found = compare(asked, loaded.model.config, folder, family, ids)  # type: ignore[arg-type]
    assert [c.prompt for c in found if not c.agrees] == seen


@pytest.mark.parametrize(
    ("kinds", "changes", "message"),
    [
        ({}, {}, r"encoder efficientnet_lite: clip or siglip fit"),
        ({"encoder": "dinov2"}, {}, r"encoder dinov2: clip or siglip fit"),
        ({"encoder": "clip", "connector": "linear"}, {}, r"connector linear: an mlp of depth 2 fits"),
        ({"encoder": "clip"}, {"connector": {"kind": "mlp", "depth": 3}}, r"connector mlp of depth 3"),
        (
            {"encoder": "clip"},
            {"fusion": {"kind": "gated_cross_attention", "every": 1}},
            r"fusion gated_cross_attention",
        ),
        ({"encoder": "clip"}, {"positions": {"kind": "mrope", "sections": [1, 1, 1]}}, r"positions mrope"),
    ],
)
def test_a_model_without_a_counterpart_is_refused_with_the_reason(
    tmp_path: Path, kinds: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    tokenizer = tokenizer_dir("llava_onevision", tmp_path)
    model = Vlm.__new__(Vlm)
    torch.nn.Module.__init__(model)
    model.config = build(model_value(tokenizer, **kinds) | changes).config
    with pytest.raises(ModelError, match=rf"no Hugging Face class holds this model: .*{message}"):
        export(Loaded(model, Tokenizer.load(tokenizer), tmp_path, {}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "qwen2_vl",
            {"resolution": Square(size=56)},
            r"resolution square: native fits \(a model with native resolution",
        ),
        (
            "llava_next",
            {"resolution": AnyRes(size=56, pinpoints=((56, 56),), newline=False)},
            r"without newline or unpad",
        ),
        (
            "llava_next",
            {"resolution": AnyRes(size=56, pinpoints=((56, 56),), max_tiles=4)},
            r"max_tiles and encoder clip",
        ),
        (
            "llava_onevision",
            {"resolution": AnyRes(size=56, pinpoints=((56, 56),), max_tiles=4, video_newline="grid")},
            r"clips pooled by \('grid', 'bilinear', 2\)",
        ),
        ("llava", {"template": Plain()}, r"template 'plain' is for captions"),
    ],
)
def test_settings_without_a_counterpart(
    checkpoint: Callable[..., Path], tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        export(with_config(load(checkpoint(family)), **changes), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(("encoder", "language"), [("siglip", "qwen3"), ("clip", "mistral"), ("siglip", "llama")])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_combinations_that_were_never_published(tmp_path: Path, encoder: str, language: str, fit: str) -> None:
    tokenizer = tokenizer_dir("llava_onevision", tmp_path)
    value = model_value(tokenizer, encoder=encoder, language=language, vocab_size=576)
    value["resolution"]["fit"] = fit
    value["template"] = {"kind": "chatml", "system": "Hello."}
    model = build(value)
    done = export(Loaded(model, Tokenizer.load(tokenizer), tmp_path, {}), tmp_path / "out")
    assert all(c.agrees for c in done.comparisons)
    again = load(done.path).model.config
    assert (again.resolution, again.template) == (Square(size=32, fit=fit), ChatML(system="Hello."))  # type: ignore[arg-type]


def test_the_command(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = checkpoint("llava")
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["family"], result["path"], sorted(result["logits"])) == (
        "llava",
        str(tmp_path / "out"),
        ["image", "text"],
    )
    assert result["logits"]["image"]["difference"] < 1e-5
    done = CliRunner().invoke(app, ["export", str(tmp_path / "out"), str(tmp_path / "again")])
    assert "logits differ by" in done.stdout
    assert_same(tmp_path / "out", tmp_path / "again")
    assert load(tmp_path / "again").model.config.template == VicunaV1()
