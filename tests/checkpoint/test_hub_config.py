from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from opsin.checkpoint.chat_templates import jinja
from opsin.checkpoint.load import read_model_config
from opsin.core.errors import CheckpointError, ModelError
from opsin.model.encoder_values import CLIP_MEAN, HALF, ClipEncoder, NativeVitEncoder, SiglipEncoder
from opsin.text.templates import QWEN_SYSTEM, ChatML, Llama2, Llama3, Mistral, VicunaV1
from opsin.vision.any_res import NEXT_PINPOINTS, ONEVISION_PINPOINTS, AnyRes
from opsin.vision.native import Native
from opsin.vision.positions import MRope, Sequential
from opsin.vision.sampling import LlavaFrames, QwenFrames
from opsin.vision.square import Square
from tests.support.hub import change, read, tokenizer_dir, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064},
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
"""What the published file of llava-1.5-7b-hf says: only what differs from the defaults."""

QWEN_2B = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "in_chans": 3,
        "mlp_ratio": 4,
        "num_heads": 16,
    },
    "vocab_size": 151936,
}
"""The flat config of Qwen2-VL-2B-Instruct."""


@pytest.fixture
def described(tmp_path: Path) -> Callable[..., Path]:
    """A directory with a config, a tokenizer and no weights."""

    def make(config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> Path:
        folder = tokenizer_dir(config.get("model_type", "llava"), tmp_path)
        write(folder / "config.json", config)
        if preprocessor is not None:
            write(folder / "preprocessor_config.json", preprocessor)
        return folder

    return make


def test_llava_7b_from_the_few_keys_of_its_file(described: Callable[..., Path]) -> None:
    config = read_model_config(described(LLAVA_7B))
    assert isinstance(config.encoder, ClipEncoder)
    assert (config.encoder.facts["num_hidden_layers"], config.encoder.width, config.encoder.select_layer) == (
        24,
        1024,
        -2,
    )
    facts = config.language.facts
    assert (facts["hidden_size"], facts["intermediate_size"], facts["num_hidden_layers"]) == (4096, 11008, 32)
    assert (facts["rms_norm_eps"], facts["vocab_size"]) == (1e-5, 32064)
    assert facts["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}
    assert config.resolution == Square(size=336, fit="crop")
    assert config.template == VicunaV1()
    assert config.layout(480, 640, "single").tokens == 576


def test_configs_without_a_tower_mean_the_published_ones(described: Callable[..., Path]) -> None:
    clip = read_model_config(described({"model_type": "llava_next"}))
    assert (clip.encoder.width, clip.encoder.patch_size) == (1024, 14)
    assert isinstance(clip.resolution, AnyRes)
    assert (clip.resolution.size, clip.resolution.pinpoints) == (336, NEXT_PINPOINTS)
    siglip = read_model_config(described({"model_type": "llava_onevision"}))
    assert isinstance(siglip.encoder, SiglipEncoder)
    assert (siglip.encoder.width, siglip.encoder.facts["num_hidden_layers"], siglip.encoder.select_layer) == (
        1152,
        26,
        -1,
    )
    assert siglip.encoder.mean == HALF
    assert siglip.resolution == AnyRes(size=384, pinpoints=ONEVISION_PINPOINTS, max_tiles=9, rule="transformers")
    assert siglip.language.facts["model_type"] == "qwen2"
    assert siglip.layout(1920, 1080, "single").tokens == 7317


def test_qwen2_vl_2b(described: Callable[..., Path]) -> None:
    config = read_model_config(described(QWEN_2B, {"min_pixels": 3136, "max_pixels": 12845056}))
    assert isinstance(config.encoder, NativeVitEncoder)
    assert (config.encoder.depth, config.encoder.width, config.encoder.feed_forward) == (32, 1280, 5120)
    assert config.positions == MRope(sections=(16, 24, 24), resume="paper")
    assert isinstance(config.resolution, Native)
    assert (config.resolution.min_pixels, config.resolution.max_pixels) == (3136, 12845056)
    facts = config.language.facts
    assert (facts["rms_norm_eps"], facts["tie_word_embeddings"], facts["model_type"]) == (1e-6, True, "qwen2")
    assert facts["rope_parameters"] == {"rope_type": "default", "rope_theta": 1_000_000.0}
    assert "sliding_window" not in facts  # named, but off
    assert config.template == ChatML(
        system=QWEN_SYSTEM, around_picture=("<|vision_start|>", "<|vision_end|>"), after_picture=""
    )
    assert config.layout(480, 640, "single").tokens == 391


def test_both_layouts_of_qwen2_vls_config_mean_the_same(checkpoint: Callable[..., Path]) -> None:
    saved, flat = checkpoint("qwen2_vl", "saved"), checkpoint("qwen2_vl", "hub")
    assert "text_config" in read(saved / "config.json")
    assert "text_config" not in read(flat / "config.json")
    one, other = read_model_config(saved), read_model_config(flat)
    assert one.model_copy(update={"language": other.language}) == other
    assert one.language.facts == other.language.facts


def test_limits_of_clips_are_their_own_file_s_or_the_pictures(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2_vl")
    resolution = read_model_config(folder).resolution
    assert isinstance(resolution, Native)
    assert (resolution.video_min_pixels, resolution.video_max_pixels) == (3136, 28 * 28 * 64)
    write(folder / "video_preprocessor_config.json", {"size": {"shortest_edge": 6272, "longest_edge": 12544}})
    resolution = read_model_config(folder).resolution
    assert isinstance(resolution, Native)
    assert (resolution.video_min_pixels, resolution.video_max_pixels) == (6272, 12544)


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({"do_center_crop": True, "crop_size": {"height": 56, "width": 56}}, Square(size=56, fit="crop")),
        ({"do_pad": True, "size": {"shortest_edge": 56}}, Square(size=56, fit="pad")),
        ({"size": {"height": 56, "width": 56}}, Square(size=56, fit="stretch")),
        (
            {"do_center_crop": False, "size": {"height": 56, "width": 56}, "crop_size": 28},
            Square(size=56, fit="stretch"),
        ),
        ({}, Square(size=56, fit="crop")),
    ],
)
def test_how_pictures_become_square(checkpoint: Callable[..., Path], preprocessor: Any, expected: Square) -> None:
    folder = checkpoint("llava")
    write(folder / "preprocessor_config.json", preprocessor)
    assert read_model_config(folder).resolution == expected


def test_colours_come_from_the_preprocessor_also_inside_of_the_processor(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    assert read_model_config(folder).encoder.mean == CLIP_MEAN
    (folder / "preprocessor_config.json").unlink()
    inner = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    write(folder / "processor_config.json", {"image_processor": inner})
    encoder = read_model_config(folder).encoder
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "template",
    [
        VicunaV1(),
        VicunaV1(system='Be brief.\n"Quoted" {{ x }} \U0001f600 \u2028'),
        ChatML(),
        ChatML(system="S"),
        ChatML(system="S", around_picture=("<|im_start|>", 'it\'s "one"')),
        ChatML(system="S", after_mark=""),
        Mistral(),
        Llama2(),
        Llama3(),
        Llama3(system="S"),
        VicunaV1(image_tags=True),
    ],
)
def test_a_template_that_opsin_wrote_is_recognised(checkpoint: Callable[..., Path], template: Any) -> None:
    folder = checkpoint("llava")
    (folder / "chat_template.jinja").write_text(jinja(template, "llava"), encoding="utf-8")
    assert read_model_config(folder).template == template
    change(folder / "tokenizer_config.json", chat_template=(folder / "chat_template.jinja").read_text(encoding="utf-8"))
    (folder / "chat_template.jinja").unlink()
    assert read_model_config(folder).template == template


def test_any_other_template_is_not_interpreted(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert read_model_config(folder).template == VicunaV1()
    chosen = ChatML(system="Mine.")
    assert read_model_config(folder, template=chosen).template == chosen


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_mistral_is_spoken_to_as_llava_does(checkpoint: Callable[..., Path], family: str) -> None:
    folder = checkpoint(family)
    change(folder / "config.json", text_config={"model_type": "mistral"})
    assert read_model_config(folder).template == Mistral()
    assert read_model_config(folder, template=VicunaV1()).language.facts["sliding_window"] == 4096


def test_a_language_model_without_a_known_template_needs_one(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    change(folder / "config.json", text_config={"model_type": "qwen3"})
    with pytest.raises(ModelError, match=r"no chat template for llava with a qwen3.*template=\.\.\."):
        read_model_config(folder)


def test_how_frames_of_videos_are_taken(checkpoint: Callable[..., Path]) -> None:
    assert read_model_config(checkpoint("llava_onevision")).video == LlavaFrames()
    assert read_model_config(checkpoint("qwen2_vl")).video == QwenFrames()


@pytest.mark.parametrize("where", [None, "text_config", "vision_config"])
@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code"])
def test_a_config_that_asks_for_remote_code_is_refused(
    checkpoint: Callable[..., Path], key: str, where: str | None
) -> None:
    folder = checkpoint("llava")
    asked = {key: {"AutoModel": "modeling_evil.Evil"} if key == "auto_map" else True}
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    change(folder / "config.json", **(asked if where is None else {where: asked}))
    with pytest.raises(CheckpointError, match=rf"{key} asks to run Python code that comes with the weights"):
        read_model_config(folder)


def test_keys_that_are_not_listed_never_reach_the_model(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    evil = {"_attn_implementation_internal": "evil/kernels", "torch_dtype": "float16", "pruned_heads": {"0": [1]}}
    change(folder / "config.json", text_config=evil, vision_config=evil)
    config = read_model_config(folder)
    assert not evil.keys() & (config.language.facts.keys() | config.encoder.facts.keys())


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava", {"text_config": {"hidden_size": 10**9}}, r"text_config: hidden_size: Input should be less than"),
        ("llava", {"text_config": {"num_hidden_layers": -1}}, r"num_hidden_layers: Input should be greater"),
        ("llava", {"text_config": {"vocab_size": "many"}}, r"vocab_size: Input should be a valid integer"),
        ("llava", {"text_config": {"rope_scaling": [1]}}, r"rope_scaling must be a table"),
        ("llava", {"text_config": {"rope_scaling": {"rope_type": "evil"}}}, r"rope_parameters\.rope_type"),
        ("llava", {"vision_config": {"image_size": 0}}, r"vision_config: image_size"),
        ("llava", {"vision_config": {"num_channels": 4}}, r"num_channels"),
        ("llava", {"projector_hidden_act": "relu"}, r"projector_hidden_act: Input should be 'gelu'"),
        ("llava", {"multimodal_projector_bias": False}, r"multimodal_projector_bias: Input should be True"),
        ("llava", {"quantization_config": {"bits": 4}}, r"quantization_config: convert the weights"),
        ("llava", {"model_type": "fuyu"}, r"model_type 'fuyu'; opsin reads llava, llava_next"),
        ("llava_onevision", {"vision_aspect_ratio": "square"}, r"vision_aspect_ratio: String should match"),
        ("llava_next", {"image_grid_pinpoints": [[56, 56]]}, r"differ from those of the preprocessor"),
        ("qwen2_vl", {"rope_scaling": {"mrope_section": None}}, r"no mrope_section"),
        ("qwen2_vl", {"vision_config": {"hidden_size": 33}}, r"hidden_size 33 must be the language model's 32"),
        ("qwen2_vl", {"vision_config": {"patch_size": 16}}, r"patch_size is 16, but 14 in the preprocessor's file"),
        ("qwen2_vl", {"vision_config": {"hidden_act": "silu"}}, r"hidden_act: Input should be 'quick_gelu'"),
    ],
)
def test_malformed_configs(checkpoint: Callable[..., Path], family: str, changes: Any, message: str) -> None:
    folder = checkpoint(family)
    change(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_model_config(folder)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llava", {"vision_feature_select_strategy": "full"}, r"'full' with CLIP keeps the class token"),
        (
            "llava_onevision",
            {"vision_feature_select_strategy": "default"},
            r"'default' with SigLIP.*drops the first patch",
        ),
        (
            "llava",
            {"text_config": {"model_type": "gemma"}},
            r"a language model of model_type 'gemma'; opsin runs llama",
        ),
        (
            "llava",
            {"vision_config": {"model_type": "pixtral"}},
            r"a vision tower of model_type 'pixtral'; opsin reads clip",
        ),
        ("qwen2_vl", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, r"sections \[1, 1, 1\] sum to 3"),
    ],
)
def test_what_has_no_counterpart(checkpoint: Callable[..., Path], family: str, changes: Any, message: str) -> None:
    folder = checkpoint(family)
    change(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        read_model_config(folder)


def test_several_layers_of_features(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava")
    change(folder / "config.json", vision_feature_layer=[-2, -1])
    encoder = read_model_config(folder).encoder
    assert isinstance(encoder, ClipEncoder)
    assert (encoder.select_layer, encoder.width) == ((-2, -1), 32)


def test_llava_positions_are_sequential(checkpoint: Callable[..., Path]) -> None:
    assert read_model_config(checkpoint("llava_onevision")).positions == Sequential()
