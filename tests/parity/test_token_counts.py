"""How many tokens a picture costs, against the processors of transformers, for sizes drawn at random.

Two processors also want a video processor, which needs torchvision; those are made without calling their constructor.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from opsin.vision.any_res import NEXT_PINPOINTS, ONEVISION_PINPOINTS, AnyRes
from opsin.vision.native import Native
from opsin.vision.published import CLIP_L, NATIVE_VIT, SIGLIP

SIDES = st.integers(min_value=20, max_value=4000)


def bare(processor: type[Any], **attributes: Any) -> Any:
    made = processor.__new__(processor)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def counted(processor: Any, height: int, width: int) -> int:
    (tokens,) = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
    return int(tokens)


@settings(max_examples=150, deadline=None)
@given(height=SIDES, width=SIDES)
def test_llava_next(height: int, width: int) -> None:
    processor = bare(
        LlavaNextProcessor,
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 336},
            crop_size={"height": 336, "width": 336},
            image_grid_pinpoints=[list(pinpoint) for pinpoint in NEXT_PINPOINTS],
        ),
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )
    resolution = AnyRes(size=336, pinpoints=NEXT_PINPOINTS, rule="transformers")
    assert resolution.plan(height, width, "single", CLIP_L).tokens == counted(processor, height, width)


@settings(max_examples=150, deadline=None)
@given(height=SIDES, width=SIDES)
def test_llava_onevision(height: int, width: int) -> None:
    processor = bare(
        LlavaOnevisionProcessor,
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 384, "width": 384},
            image_grid_pinpoints=[list(pinpoint) for pinpoint in ONEVISION_PINPOINTS],
        ),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    resolution = AnyRes(size=384, pinpoints=ONEVISION_PINPOINTS, max_tiles=9, rule="transformers")
    assert resolution.plan(height, width, "single", SIGLIP).tokens == counted(processor, height, width)


@settings(max_examples=150, deadline=None)
@given(height=SIDES, width=SIDES)
def test_qwen2_vl(height: int, width: int) -> None:
    processor = bare(
        Qwen2VLProcessor,
        image_processor=Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12_845_056}),
    )
    tokens = Native(rule="transformers").plan(height, width, "single", NATIVE_VIT).tokens
    assert tokens == counted(processor, height, width)
