"""The proof after an export: whatever is wrong in a written file is found, whatever the type of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from opsin.checkpoint import export as module
from opsin.checkpoint.export import export
from opsin.checkpoint.load import load
from opsin.checkpoint.model import Loaded
from opsin.checkpoint.prepare import preparation
from opsin.cli import app
from opsin.core.errors import ModelError, RenderError
from opsin.text.templates import ChatML, FromTokenizer, Llama2, Mistral, VicunaV1
from opsin.text.tokenizer import Tokenizer
from opsin.vision.sampling import EvenFrames
from tests.support.hub import FAMILIES, hub_dir, merged, read, tokenizer_dir
from tests.support.models import build, model_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def loaded_in(folder: Path, family: str, dtype: torch.dtype) -> Loaded:
    return load(hub_dir(folder, family, dtype=dtype))


def writing_wrong(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> None:
    """Let an export write something else than it should."""
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: change(original(*given)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "wrong", "message"),
    [
        ("llava", {"text_config": {"rope_theta": 123.0}}, r"language is rope_parameters .*123\.0"),
        ("llava", {"text_config": {"rms_norm_eps": 0.05}}, r"rms_norm_eps 0\.05 instead of 1e-06"),
        ("llava_onevision", {"text_config": {"hidden_act": "relu"}}, r"hidden_act 'relu' instead of 'silu'"),
        ("llava_next", {"vision_feature_layer": -1}, r"encoder is select_layer -1 instead of -2"),
        ("llava_onevision", {"vision_config": {"hidden_act": "relu"}}, r"hidden_act 'relu' instead of 'gelu_py"),
        ("llava_onevision", {"vision_aspect_ratio": "anyres_max_9"}, r"resolution is max_tiles 9 instead of 2"),
        ("qwen2_vl", {"rope_theta": 123.0}, r"language is rope_parameters .*123\.0"),
        ("qwen2_vl", {"rope_scaling": {"mrope_section": [2, 1, 1]}}, r"positions is sections \(2, 1, 1\) instead of"),
    ],
)
def test_a_wrong_config_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, family: str, wrong: Any, message: str
) -> None:
    loaded = loaded_in(tmp_path, family, dtype)
    writing_wrong(monkeypatch, "config_json", lambda config: merged(config, wrong))
    with pytest.raises(ModelError, match=rf"read back, it is another model: .*{message}"):
        export(loaded, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_models_own_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """A wrong value that the comparison of values does not see."""
    loaded = loaded_in(tmp_path, "llava", dtype)
    writing_wrong(monkeypatch, "config_json", lambda config: merged(config, {"text_config": {"rms_norm_eps": 0.05}}))
    monkeypatch.setattr("opsin.checkpoint.proof._check_config", lambda *_: None)
    with pytest.raises(ModelError, match=r"logits are not the model's: text by"):
        export(loaded, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "file", "wrong", "message"),
    [
        ("llava", "preprocessor_config.json", {"image_mean": [0.9] * 3}, r"encoder is mean \(0\.9, 0\.9, 0\.9\)"),
        ("llava", "preprocessor_config.json", {"do_pad": True}, r"resolution is fit 'pad' instead of 'crop'"),
        ("llava", "processor_config.json", {"patch_size": 7}, r"leaves 64 places for a picture of 16 tokens"),
        ("llava_next", "processor_config.json", {"patch_size": 7}, r"places for a picture of"),
        ("llava_onevision", "processor_config.json", {"num_image_tokens": 3}, r"leaves 3 places .* 16 tokens"),
        ("llava_onevision", "video_preprocessor_config.json", {"image_std": [0.4] * 3}, r"clips is std \(0\.4"),
        ("qwen2_vl", "video_preprocessor_config.json", {"max_pixels": 6272}, r"resolution is video_max_pixels 6272"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_files_of_processors_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, file: str, wrong: Any, message: str
) -> None:
    loaded = loaded_in(tmp_path, family, torch.float32)
    writing_wrong(monkeypatch, "processor_files", lambda files: files | {file: files[file] | wrong})
    with pytest.raises(ModelError, match=message):
        export(loaded, tmp_path / "out")


def test_colours_that_transformers_makes_otherwise_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loaded_in(tmp_path, "qwen2_vl", torch.float32)
    monkeypatch.setattr("opsin.checkpoint.processors.PIXEL", -1.0)
    with pytest.raises(ModelError, match=r"the image processor's colours differ by"):
        export(loaded, tmp_path / "out")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_template_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    loaded = loaded_in(tmp_path, family, torch.float32)
    writing_wrong(monkeypatch, "jinja", lambda _: '{{ "wrong" }}')
    with pytest.raises(ModelError, match=r"template is None instead of"):
        export(loaded, tmp_path / "out")
    monkeypatch.setattr("opsin.checkpoint.proof.read_template", lambda _: loaded.model.config.template)
    with pytest.raises(ModelError, match=r"the written chat template makes 'wrong' of a prompt, the model "):
        export(loaded, tmp_path / "out")


def test_other_tokens_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loaded_in(tmp_path, "llava", torch.float32)
    monkeypatch.setattr("opsin.checkpoint.processors._ids", lambda *_: [])
    notes = export(loaded, tmp_path / "out").notes
    assert "the text prompt: transformers cuts its text into other tokens than opsin does" in notes


@pytest.mark.parametrize("frames", [2, 4, 16])
def test_long_clips_are_compared_under_one_rule_of_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """More maps than rows and columns: transformers 5 resumes text elsewhere than the paper, which is no fault."""
    monkeypatch.setattr("opsin.checkpoint.compare.FRAMES", frames)
    done = export(loaded_in(tmp_path, "qwen2_vl", torch.float32), tmp_path / "out")
    assert [c.prompt for c in done.comparisons if c.agrees] == ["text", "image", "video"]
    assert any("transformers 5 gives other positions than the paper" in note for note in done.notes)


def qwen_like(folder: Path, sections: tuple[int, int, int] = (1, 1, 1), **changes: Any) -> Loaded:
    """Qwen2-VL's parts as a recipe puts them together."""
    tokenizer = tokenizer_dir("qwen2_vl", folder)
    value = model_value(
        tokenizer,
        encoder="native_vit",
        connector="patch_merger",
        language="qwen2",
        resolution="native",
        positions="mrope",
        vocab_size=600,
        **changes,
    )
    value["positions"]["sections"] = sections
    value["template"] = {"kind": "chatml", "around_picture": ["<|vision_start|>", "<|vision_end|>"]}
    return Loaded(build(value), Tokenizer.load(tokenizer), folder, {})


def test_a_model_of_qwen2_vls_parts(tmp_path: Path) -> None:
    done = export(qwen_like(tmp_path), tmp_path / "out")
    assert max(c.difference for c in done.comparisons) < 1e-4
    assert "videos: the directory does not say which frames are taken (llava here)" in done.notes


def test_scaled_rotary_embeddings_of_qwen2_vl(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    loaded = qwen_like(tmp_path, rope_parameters=yarn)
    done = export(loaded, tmp_path / "out")
    assert read(done.path / "config.json")["rope_scaling"]["factor"] == 4.0
    assert load(done.path).model.config.language.rope["rope_type"] == "yarn"
    assert max(c.difference for c in done.comparisons) < 1e-4


def test_heads_that_qwen2_vl_cannot_have(tmp_path: Path) -> None:
    loaded = qwen_like(tmp_path, head_dim=8, sections=(1, 1, 2))
    with pytest.raises(ModelError, match=r"language\.head_dim 8: 6 fits, the width 24 by 4 heads"):
        export(loaded, tmp_path / "out")


@pytest.mark.parametrize("around", [None, ("<|vision_start|>", "<|vision_pad|>")])
def test_qwen2_vl_needs_its_marks_around_pictures(tmp_path: Path, around: tuple[str, str] | None) -> None:
    loaded = qwen_like(tmp_path)
    template = ChatML(around_picture=around)
    loaded.model.config = loaded.model.config.model_copy(update={"template": template})
    with pytest.raises(ModelError, match=r"template chatml without <\|vision_start\|> and <\|vision_end\|> around"):
        export(loaded, tmp_path / "out")


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_the_language_model_is_named_for_vllm(checkpoint: Callable[..., Path], tmp_path: Path, family: str) -> None:
    done = export(load(checkpoint(family)), tmp_path / "out")
    text = read(done.path / "config.json")["text_config"]
    assert text["architectures"] == ["Qwen2ForCausalLM" if family == "llava_onevision" else "LlamaForCausalLM"]
    assert text["torch_dtype"] == "float32"


def test_how_frames_are_taken_is_a_note(tmp_path: Path) -> None:
    loaded = loaded_in(tmp_path, "llava_onevision", torch.float32)
    assert not export(loaded, tmp_path / "one").notes
    loaded.model.config = loaded.model.config.model_copy(update={"video": EvenFrames()})
    assert any("which frames are taken (even here)" in note for note in export(loaded, tmp_path / "other").notes)


@pytest.mark.parametrize(
    ("family", "template"),
    [
        ("llava", VicunaV1(system='Say "\\" or \U0001f600.\nAlways.')),
        ("llava_onevision", ChatML(system="\U0001f600 '", around_picture=("<|im_start|>", "<|im_end|>"))),
        ("llava", Mistral()),
        ("llava", Llama2()),
        ("llava", VicunaV1(image_tags=True)),
        ("llava_onevision", ChatML()),
        ("llava_onevision", ChatML(system="S", after_mark="")),
    ],
)
def test_templates_are_rendered_by_transformers_as_by_opsin(tmp_path: Path, family: str, template: Any) -> None:
    loaded = loaded_in(tmp_path, family, torch.float32)
    loaded.model.config = loaded.model.config.model_copy(update={"template": template})
    done = export(loaded, tmp_path / "out")  # which compares prompts with text, pictures, clips and system texts
    assert load(done.path).model.config.template == template


def test_what_training_learned_is_not_told(tmp_path: Path) -> None:
    loaded = loaded_in(tmp_path, "llava_onevision", torch.float32)
    template = ChatML(labels="llava_next")
    loaded.model.config = loaded.model.config.model_copy(update={"template": template})
    assert load(export(loaded, tmp_path / "out").path).model.config.template == ChatML()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (FromTokenizer(), "template 'tokenizer' has no place for pictures in its Jinja text"),
        (ChatML(number_media=True), "does not number pictures; export without number_media"),
    ],
)
def test_templates_that_cannot_be_written(tmp_path: Path, template: Any, reason: str) -> None:
    loaded = loaded_in(tmp_path, "llava_onevision", torch.float32)
    loaded.model.config = loaded.model.config.model_copy(update={"template": template})
    with pytest.raises(ModelError, match=reason):
        export(loaded, tmp_path / "out")


def test_a_published_mistral_is_exported_by_the_command(tmp_path: Path) -> None:
    folder = hub_dir(tmp_path, "llava_next", text_config={"model_type": "mistral", "sliding_window": None})
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "out").model.config.template == Mistral()


def test_the_command_takes_a_template(tmp_path: Path) -> None:
    folder = hub_dir(tmp_path, "llava", text_config={"model_type": "qwen3"})
    assert CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out")]).exit_code != 0
    done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out"), "--template", "vicuna_v1"])
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "out").model.config.template == VicunaV1()


def test_a_tokenizer_without_a_template_is_refused_before_any_sample(tmp_path: Path) -> None:
    loaded = loaded_in(tmp_path, "llava", torch.float32)
    with pytest.raises(RenderError, match="needs a tokenizer with a chat template, this one has none"):
        preparation(loaded.model.config, loaded.tokenizer, FromTokenizer())
