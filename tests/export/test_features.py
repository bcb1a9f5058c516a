"""`plrc.load_backbone`: what goes in, what comes out, at any size and precision."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.export.runs import names, saved_run
from torch import Tensor
from torch.nn import functional as F

import plrc
from plrc.data.photometric import normalize
from plrc.errors import ConfigError
from plrc.model import Backbone, build_backbone
from plrc.pixels import IMAGENET


@pytest.fixture(scope="module")
def net() -> Backbone:
    torch.manual_seed(0)
    net = build_backbone("resnet18")
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 64, 64))
    return net.eval()


@pytest.fixture(scope="module")
def run(net: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("features"), names(net))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_bytes_floats_and_normalized_images_give_the_plain_networks_features(
    net: Backbone, run: Path, pixels: Tensor
) -> None:
    plain = net(normalize(pixels, IMAGENET))
    loaded = plrc.load_backbone(run, normalize=True)
    assert loaded.channels == {4: 64, 8: 128, 16: 256, 32: 512} and not loaded.training
    given = {"bytes": loaded(pixels), "floats": loaded(pixels / 255)}
    given["normalized"] = plrc.load_backbone(run)(normalize(pixels, IMAGENET))
    assert all(torch.equal(given["normalized"][s], plain[s]) for s in plain)
    for levels in given.values():
        assert {s: tuple(f.shape) for s, f in levels.items()} == {
            4: (2, 64, 16, 24), 8: (2, 128, 8, 12), 16: (2, 256, 4, 6), 32: (2, 512, 2, 3)
        }  # fmt: skip
        assert all((levels[s] - plain[s]).norm() < 1e-5 * plain[s].norm() for s in plain)  # float32's rounding
    assert list(loaded(pixels, deepest=8)) == [4, 8]


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 70), (64, 65)])
def test_a_resnet_takes_any_size_as_it_is(height: int, width: int, net: Backbone, run: Path, pixels: Tensor) -> None:
    images = normalize(pixels[:, :, :height, :width], IMAGENET)
    levels = plrc.load_backbone(run)(images)
    for stride, features in net(images).items():
        assert levels[stride].shape[2:] == (math.ceil(height / stride), math.ceil(width / stride))
        assert torch.equal(levels[stride], features)


@torch.no_grad()
def test_layer4_with_stride_1_is_cut_to_its_own_positions(run: Path, pixels: Tensor) -> None:
    levels = plrc.load_backbone(run, normalize=True, layer4_stride=1)(pixels[:, :, :50, :70])
    assert levels[32].shape[2:] == levels[16].shape[2:] == (4, 5)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.04), (torch.float16, 0.005)])
def test_half_precision_is_close(dtype: torch.dtype, close: float, net: Backbone, run: Path, pixels: Tensor) -> None:
    levels = plrc.load_backbone(run, normalize=True, dtype=dtype)(pixels)
    for stride, plain in net(normalize(pixels, IMAGENET)).items():
        assert levels[stride].dtype == dtype
        assert float((levels[stride].float() - plain).norm() / plain.norm()) < close


@torch.no_grad()
def test_channels_last_is_another_layout_of_the_same_features(run: Path, pixels: Tensor) -> None:
    usual, last = (
        plrc.load_backbone(run, normalize=True),
        plrc.load_backbone(run, normalize=True, channels_last=True, device="cpu"),
    )
    weight = last.backbone.net.get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    a, b = usual(pixels), last(pixels)
    assert b[8].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.allclose(a[s], b[s], atol=1e-4) for s in a)


def test_it_can_be_trained_on_and_compiled_around(run: Path, pixels: Tensor) -> None:
    loaded = plrc.load_backbone(run, normalize=True)
    loaded(pixels)[32].sum().backward()
    assert loaded.backbone.net.get_parameter("conv1.weight").grad is not None
    assert not any(name.startswith(("mean", "std")) for name in loaded.state_dict())


def test_a_timm_network_that_rounds_down_gives_all_positions(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    net = build_backbone("timm:test_convnext").eval()
    loaded = plrc.load_backbone(saved_run(tmp_path, names(net), backbone="timm:test_convnext"), normalize=True)
    images = torch.randint(256, (1, 3, 50, 71), dtype=torch.uint8)
    with torch.no_grad():
        assert net(normalize(images, IMAGENET))[4].shape[2:] == (12, 17)  # by itself it loses the border
        padded = F.pad(normalize(images, IMAGENET), (0, -71 % 32, 0, -50 % 32))
        whole = net(padded)[8][..., : math.ceil(50 / 8), : math.ceil(71 / 8)]
        assert torch.allclose(loaded(images)[8], whole, atol=1e-5)
        assert {s: f.shape[2:] for s, f in loaded(images).items()} == {
            s: (math.ceil(50 / s), math.ceil(71 / s)) for s in net.channels
        }


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.rand(3, 64, 64), r"images have the shape \[3, 64, 64\]; give a batch \[B, 3, H, W\]"),
        (torch.rand(1, 1, 64, 64), r"images have the shape \[1, 1, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "images are of int64; give uint8 in 0..255 or float in 0..1"),
        (torch.randn(1, 3, 64, 64), r"images range from -.* leave normalize=True out"),
        (torch.rand(1, 3, 64, 64) * 255, r"images range from .* to 25\d; give float in 0..1 or uint8"),
        (torch.full((1, 3, 64, 64), torch.nan), "images range from nan to nan"),
    ],
)
def test_images_in_other_units_are_refused(images: Tensor, sentence: str, run: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        plrc.load_backbone(run, normalize=True)(images)


def test_what_cannot_be_loaded_as_asked(run: Path, pixels: Tensor) -> None:
    with pytest.raises(TypeError, match="images are of uint8; give float images, already normalized"):
        plrc.load_backbone(run)(pixels)
    with pytest.raises(TypeError, match=r"images are a ndarray; give a torch\.Tensor"):
        plrc.load_backbone(run)(pixels.numpy())
    with pytest.raises(ConfigError, match=r"dtype must be one of torch\.float32, torch\.float16, .* got torch\.int8"):
        plrc.load_backbone(run, normalize=True, dtype=torch.int8)
