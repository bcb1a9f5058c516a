"""The first convolution of a network for images of other channels than RGB, and weights that start it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plrc.errors import ConfigError, WeightsError
from plrc.model import build_backbone
from plrc.model.stem import inflate
from plrc.model.weights import Weights, load_into, read_weights
from plrc.pixels import PixelStatistics
from plrc.transfer.initial import initial_backbone, verify_initial_weights

FIVE = PixelStatistics((0.5,) * 5, (0.25,) * 5)
OWN_NETWORK = """
from torch import nn

class Net(nn.Module):
    strides = (4, 8)

    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 4, stride=4)
        self.next = nn.Conv2d(8, 16, 2, stride=2)

    def forward(self, images):
        fine = self.stem(images)
        return [fine, self.next(fine)]

def rgb():
    return Net(3)

def five():
    return Net(5)
"""


@pytest.mark.parametrize("channels", [1, 6])
def test_a_gray_image_gives_the_same_as_in_rgb(channels: int) -> None:
    weight = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    gray = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.conv2d(gray.expand(-1, 3, -1, -1), weight)
    got = torch.nn.functional.conv2d(gray.expand(-1, channels, -1, -1), inflate(weight, channels))
    torch.testing.assert_close(got, expected)


def test_inflating_is_what_timm_does() -> None:
    timm = pytest.importorskip("timm")
    weight = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    for channels in (1, 2, 5, 6):
        expected = timm.models._manipulate.adapt_input_conv(channels, weight.clone())
        torch.testing.assert_close(inflate(weight, channels), expected)


@pytest.mark.parametrize("name", ["resnet18", "timm:test_resnet", "timm:test_vit", "timm:test_efficientnet"])
@pytest.mark.parametrize("channels", [1, 5])
def test_backbones_take_other_channels(name: str, channels: int) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    backbone = build_backbone(name, in_channels=channels).eval()
    usual = build_backbone(name)
    assert (backbone.in_channels, backbone.channels) == (channels, usual.channels)
    side = backbone.fitting_side(64)
    levels = backbone(torch.zeros(1, channels, side, side))
    assert {stride: level.shape[1] for stride, level in levels.items()} == backbone.channels
    report = load_into(backbone, Weights(usual.net.state_dict(), "weights", {}))
    state = usual.net.state_dict()
    assert report.complete
    assert len(report.inflated) == 1
    (stem,) = report.inflated
    assert torch.equal(backbone.net.state_dict()[stem], inflate(state[stem], channels))
    assert f"inflated          1  {stem}" in report.table()


def test_networks_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(OWN_NETWORK)
    inflated = build_backbone(f"{file}:rgb", in_channels=5)
    own = build_backbone(f"{file}:five", in_channels=5)
    assert inflated.channels == own.channels == {4: 8, 8: 16}
    assert inflated(torch.zeros(1, 5, 32, 32))[8].shape == (1, 16, 4, 4)
    with pytest.raises(ConfigError, match=r"data.channels is 4, but the first convolution of .*:five takes 5 channels"):
        build_backbone(f"{file}:five", in_channels=4)


def test_weights_of_rgb_start_a_backbone_of_five_channels(tmp_path: Path) -> None:
    state = build_backbone("resnet18").net.state_dict()
    file = tmp_path / "rgb.safetensors"
    save_file(state, file)
    backbone, initial = initial_backbone(str(file), usual=FIVE)
    assert initial.backbone == "resnet18"
    assert backbone.pixels == FIVE
    assert "tensors inflated from three channels to 5: 1 (conv1.weight)" in initial.lines()
    assert verify_initial_weights(backbone, initial).startswith("120 of 120 backbone tensors")
    backbone.net.conv1.weight.data[0, 4] += 1  # type: ignore[union-attr,operator,index]
    with pytest.raises(WeightsError, match=r"see .*conv1.weight"):
        verify_initial_weights(backbone, initial)


def test_weights_of_other_channels_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "five.safetensors"
    save_file(build_backbone("resnet18", in_channels=5).net.state_dict(), file, FIVE.metadata())
    assert initial_backbone(str(file), usual=FIVE)[0].pixels == FIVE
    assert read_weights(file).metadata["pixel_mean"] == "[0.5, 0.5, 0.5, 0.5, 0.5]"
    with pytest.raises(
        WeightsError, match=r"was trained on images of 5 channels, but data.channels is 3; write --data"
    ):
        initial_backbone(str(file))
    with pytest.raises(WeightsError, match=r"of 5 channels, but data.channels is 4; write --data.channels 5"):
        initial_backbone(str(file), usual=PixelStatistics((0.5,) * 4, (0.2,) * 4))
