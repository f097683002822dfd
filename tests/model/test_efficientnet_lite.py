"""EfficientNet-Lite: geometry, padding, and that nothing depends on the mode or the batch."""

import pytest
import torch
from torch import Tensor, nn

from opsin.core.errors import ModelError
from opsin.model.efficientnet_lite import (
    VARIANTS,
    EfficientNetLite,
    EfficientNetLiteConfig,
    SameConv2d,
    same_padding,
    scaled_channels,
)

# Of the package efficientnet-lite-pytorch without classifier and running statistics, less one per channel
# (a folded batch norm leaves one bias where there were gain and bias).
NUM_PARAMETERS = {"lite0": 3_350_000, "lite1": 4_108_848, "lite2": 4_782_024, "lite3": 6_877_760, "lite4": 11_669_384}


@pytest.fixture
def tiny() -> EfficientNetLite:
    torch.manual_seed(0)
    return EfficientNetLite(EfficientNetLiteConfig("tiny"))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 224), (224, 224)])
def test_one_position_per_patch(tiny: EfficientNetLite, height: int, width: int) -> None:
    features = tiny(torch.randn(2, 3, height, width))
    assert features.shape == (2, tiny.width, height // tiny.patch_size, width // tiny.patch_size)


def test_random_weights_keep_the_signal_alive(tiny: EfficientNetLite) -> None:
    features = tiny(torch.randn(4, 3, 64, 64))
    assert features.std() > 0.05
    assert features.min() >= 0
    assert features.max() <= 6


def test_train_mode_changes_nothing(tiny: EfficientNetLite) -> None:
    pixels = torch.randn(3, 3, 64, 64)
    assert torch.equal(tiny.train()(pixels), tiny.eval()(pixels))


def test_pictures_do_not_see_each_other(tiny: EfficientNetLite) -> None:
    pixels = torch.randn(3, 3, 64, 64)
    one_by_one = torch.cat([tiny(picture[None]) for picture in pixels])
    torch.testing.assert_close(tiny(pixels), one_by_one, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter(tiny: EfficientNetLite) -> None:
    tiny(torch.randn(2, 3, 96, 96)).sum().backward()
    assert [name for name, parameter in tiny.named_parameters() if parameter.grad is None] == []


def test_state_dict_can_be_stored(tiny: EfficientNetLite) -> None:
    assert all(tensor.is_contiguous() for tensor in tiny.state_dict().values())


@pytest.mark.parametrize("variant", NUM_PARAMETERS)
def test_published_sizes(variant: str) -> None:
    with torch.device("meta"):
        model = EfficientNetLite(EfficientNetLiteConfig(variant))
    assert model.width == 1280
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS[variant]


def test_unknown_variant_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'lite9' is unknown; there are lite0, .*tiny"):
        EfficientNetLiteConfig("lite9")


def test_every_variant_has_whole_channels() -> None:
    for scale in VARIANTS.values():
        assert all(scaled_channels(channels, scale.width) % 8 == 0 for channels in (16, 24, 40, 80, 112, 192, 320))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 3, 2, (0, 1)),
        (65, 5, 2, (2, 2)),
        (112, 5, 2, (1, 2)),
        (7, 3, 1, (1, 1)),
        (7, 5, 1, (2, 2)),
        (9, 1, 1, (0, 0)),
    ],
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


def padded_convolution(convolution: SameConv2d, x: Tensor) -> Tensor:
    """The slow twin: always pad explicitly."""
    pads = [same_padding(size, convolution.kernel_size[0], convolution.stride[0]) for size in (x.shape[3], x.shape[2])]
    padded = nn.functional.pad(x, (*pads[0], *pads[1]))
    return nn.functional.conv2d(
        padded, convolution.weight, convolution.bias, convolution.stride, groups=convolution.groups
    )


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (5, 8), (1, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_convolution_equals_its_slow_twin(height: int, width: int, kernel: int, stride: int) -> None:
    convolution = SameConv2d(4, 4, kernel, stride=stride, groups=4)
    x = torch.randn(2, 4, height, width)
    torch.testing.assert_close(convolution(x), padded_convolution(convolution, x))
