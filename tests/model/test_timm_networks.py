"""Networks of timm: maps of every kind of network at the right places, timm's own names, sizes that fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from plrc.config import ModelConfig
from plrc.errors import ConfigError
from plrc.export.features import DenseFeatures
from plrc.model import Network, build_backbone, check_feature_side, make_teacher

timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
TOKENS = ["test_vit", "test_vit2", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"]
SMALL = {"contrast_hidden": 12, "contrast_dim": 6, "distill_hidden": 10, "distill_dim": 7, "bn_groups": 1}


def images(count: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["test_mambaout", pytest.param("swin_s3_tiny_224", marks=pytest.mark.slow)])
def test_maps_with_channels_last_are_turned(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(f"timm:{name}").eval()
    with torch.no_grad():
        levels = backbone(images(2, 64, 96))
        theirs = backbone.net(images(2, 64, 96))
    assert {s: tuple(f.shape) for s, f in levels.items()} == {
        s: (2, c, 64 // s, 96 // s) for s, c in backbone.channels.items()
    }
    for turned, features in zip(levels.values(), theirs, strict=True):
        assert torch.equal(turned.permute(0, 2, 3, 1), features)


@pytest.mark.parametrize("name", TOKENS)
def test_a_vision_transformer_gives_its_last_patch_tokens(name: str) -> None:
    """Those of timm's `forward_features` without class and register tokens, for any size that the patch divides."""
    torch.manual_seed(0)
    backbone = build_backbone(f"timm:{name}").eval()
    (patch, width), *others = backbone.channels.items()
    assert not others and backbone.multiple == patch
    sizes = images(1, 3 * patch, 5 * patch)
    with torch.no_grad():
        (features,) = backbone(sizes).values()
        tokens = backbone.net.forward_features(sizes)
    assert features.shape == (1, width, 3, 5)
    prefix = tokens.shape[1] - 15
    assert prefix == backbone.net.num_prefix_tokens
    for row in range(3):
        for column in range(5):
            torch.testing.assert_close(features[0, :, row, column], tokens[0, prefix + 5 * row + column])
    plain = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    assert backbone.net.state_dict().keys() == plain.keys()


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit2", pytest.param("vit_small_patch16_dinov3", marks=pytest.mark.slow)]
)
def test_a_bright_square_moves_the_right_cell(name: str) -> None:
    """Cell (i, j) is the patch at rows i * p and columns j * p: it responds most to a change there."""
    torch.manual_seed(0)
    backbone = build_backbone(f"timm:{name}").eval()
    patch = backbone.multiple
    gray = torch.zeros(1, 3, 4 * patch, 6 * patch)
    with torch.no_grad():
        before = backbone(gray)[patch]
        for row, column in ((0, 0), (0, 5), (2, 1), (3, 4)):
            bright = gray.clone()
            bright[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 2
            moved = (backbone(bright)[patch] - before).square().sum(dim=1)[0]
            assert divmod(int(moved.argmax()), 6) == (row, column)
            assert moved[row, column] > 2 * moved.flatten().kthvalue(23).values


def test_networks_that_timm_wraps_keep_their_own_names() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("timm:mvitv2_tiny").eval()
    assert backbone.reading == "stages"
    plain = timm.create_model("mvitv2_tiny", pretrained=False).state_dict()
    assert backbone.net.state_dict().keys() <= plain.keys()
    wrapped = timm.create_model("mvitv2_tiny", features_only=True).eval()
    wrapped.model.load_state_dict(backbone.net.state_dict())
    with torch.no_grad():
        for ours, theirs in zip(backbone(images(1, 64, 64)).values(), wrapped(images(1, 64, 64)), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "stride", "size", "told"),
    [
        (
            "vit_small_patch14_dinov2",
            14,
            100,
            "views.size 100 does not fit timm:vit_small_patch14_dinov2, whose patch is 14; write 98 or 112",
        ),
        ("test_vit", 16, 72, "views.size 72 does not fit timm:test_vit, whose patch is 16; write 64 or 80"),
        (
            "test_maxvit",
            16,
            96,
            "views.size 96 does not fit timm:test_maxvit, whose sides must be multiples of 160; write 160",
        ),
        (
            "test_coatnet",
            16,
            320,
            "views.size 320 does not fit timm:test_coatnet, which takes images of 160 x 160 only; write 160",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_answered_with_those_that_do(name: str, stride: int, size: int, told: str) -> None:
    config = ModelConfig(backbone=f"timm:{name}", strides=(stride,), **SMALL)
    network = Network(config)
    with pytest.raises(ConfigError, match=told):
        check_feature_side(network, config, size)
    assert network.training
    for fitting in map(int, told.rpartition("write ")[2].split(" or ")):
        check_feature_side(network, config, fitting)


def test_images_of_any_size_are_padded_to_one_that_fits() -> None:
    backbone = DenseFeatures(build_backbone("timm:test_vit").eval()).eval()
    with torch.no_grad():
        assert backbone(images(1, 50, 70))[16].shape[-2:] == (4, 5)
    fixed = DenseFeatures(build_backbone("timm:test_coatnet").eval())
    with pytest.raises(ValueError, match="timm:test_coatnet takes images of 160 x 160 only, got 64 x 200"):
        fixed(images(1, 64, 200))


class Dropping(nn.Module):
    """A network of stochastic depth and dropout, as a student of the user's own may have them."""

    def __init__(self) -> None:
        super().__init__()
        from timm.layers import DropPath
        from torchvision.ops import StochasticDepth

        self.layers = nn.Sequential(nn.Linear(8, 8), DropPath(0.5), nn.Dropout(0.5), StochasticDepth(0.5, "row"))

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.layers(values)
        return result


def test_the_teacher_drops_no_paths() -> None:
    """Swin of timm drops paths by default: the student does in training mode, its teacher never."""
    for student in (Dropping(), build_backbone("timm:swin_tiny_patch4_window7_224")):
        student.train()
        batch = torch.ones(16, 8) if isinstance(student, Dropping) else images(2, 64, 64).repeat(2, 1, 1, 1)
        teacher = make_teacher(student)
        assert teacher.training
        with torch.no_grad():
            first, again = (_tensor(teacher(batch)) for _ in range(2))
            plain = _tensor(copy.deepcopy(student).eval()(batch))
            assert torch.equal(first, again) and torch.equal(first, plain)
            assert not torch.equal(_tensor(student(batch)), _tensor(student(batch)))


def _tensor(output: Tensor | dict[int, Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else output[32]
