"""Dense features lie at their places, and their compressed form keeps the cosines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plrc.data.photometric import normalize
from plrc.errors import PlrcError
from plrc.model import Backbone, build_backbone
from plrc.pixels import IMAGENET
from plrc.visualize.dense_features import CompressedFeatures, compress, dense_features, fitted_size, native_stride


class Means(nn.Module):
    """A network whose features are the mean colors of squares of 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, num_levels: int) -> list[torch.Tensor]:
        assert num_levels == 1
        return [self.weight * F.avg_pool2d(images, 16)]


@pytest.mark.parametrize("stride", [2, 4, 8, 16, 32])
def test_a_place_is_where_the_feature_grid_has_it(stride: int) -> None:
    """Red is the column, green the row, blue constant: features must give their own places."""
    height, width = 64, 96
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    image[0], image[1] = torch.arange(width)[None], torch.arange(height)[:, None]
    means = Backbone("means", Means(), {16: 3})
    features = dense_features(means, 16, 16, image, stride)
    assert features.shape == (3, height // stride, width // stride)
    torch.testing.assert_close(features.norm(dim=0), torch.ones(features.shape[1:]))
    blue = (200 / 255 - IMAGENET.mean[2]) / IMAGENET.std[2]
    color = 255 * (features[:2] / features[2] * blue * torch.tensor(IMAGENET.std[:2])[:, None, None])
    color += 255 * torch.tensor(IMAGENET.mean[:2])[:, None, None]
    column = (torch.arange(features.shape[2]) + 0.5) * stride - 0.5  # the middle of place j, counted in pixel indices
    row = (torch.arange(features.shape[1]) + 0.5) * stride - 0.5
    x, y = torch.meshgrid(column, row, indexing="xy")
    inner = (x > 8) & (x < width - 9) & (y > 8) & (y < height - 9)  # beyond, squares see the mirrored border
    assert inner.sum() > 0
    torch.testing.assert_close(color[0][inner], x[inner], atol=0.02, rtol=0)
    torch.testing.assert_close(color[1][inner], y[inner], atol=0.02, rtol=0)


def test_at_its_own_stride_a_network_gives_what_it_gives_for_the_mirrored_image() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", 1).eval()
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    assert native_stride(backbone, 32) == 16  # layer4 with stride 1
    assert native_stride(backbone, 8) == 8
    mirrored = F.pad(normalize(image[None], IMAGENET), (32, 32, 32, 32), mode="reflect")
    with torch.no_grad():
        expected = F.normalize(backbone(mirrored)[32][0, :, 2:-2, 2:-2], dim=0)
    torch.testing.assert_close(dense_features(backbone, 32, 16, image, 16), expected)


@pytest.mark.parametrize("shape", [(8, 8), (24, 40), (16, 104)])
def test_images_smaller_than_the_network_sees_have_features(shape: tuple[int, int]) -> None:
    backbone = build_backbone("resnet18").eval()
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    features = dense_features(backbone, 32, native_stride(backbone, 32), image, 8)
    assert features.shape == (512, shape[0] // 8, shape[1] // 8)
    assert bool(torch.isfinite(features).all())


def test_a_level_that_is_not_there_is_named() -> None:
    with pytest.raises(PlrcError, match="no features of stride 64; its levels are 4, 8, 16, 32"):
        native_stride(build_backbone("resnet18"), 64)


def test_sizes_are_multiples_of_the_stride() -> None:
    assert fitted_size(480, 640, 128, 8) == (96, 128)
    assert fitted_size(3000, 10, 128, 8) == (128, 8)


def cosines(features: torch.Tensor) -> torch.Tensor:
    """Of every pair of places of a map [C, h, w]: [h w, h w]."""
    flat = F.normalize(features.flatten(1), dim=0)
    return flat.T @ flat


def shown(codes: CompressedFeatures, image: int) -> torch.Tensor:
    h, w = codes.codes[image].shape[:2]
    return torch.stack([codes.affinity(image, row, column).flatten() for row in range(h) for column in range(w)])


@pytest.mark.parametrize("common", [0.0, 20.0])
def test_a_byte_a_component_keeps_the_cosines_and_states_the_error(common: float) -> None:
    """common: how long the direction is that all features share; with 20, cosines lie above 0.9."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(40, 6, 9, generator=generator) for _ in range(3)]
    for m in maps:
        m[0] += common
    maps = [F.normalize(m, dim=0) for m in maps]
    codes = compress([m.half() for m in maps], 40)
    assert [c.shape for c in codes.codes] == [(6, 9, 40)] * 3
    exact = [cosines(m) for m in maps]
    error = torch.stack([(shown(codes, i) - exact[i]).abs() for i in range(3)])
    rounding = float(codes.scale.max()) / 6**0.5  # of both features: standard deviation of their product's error
    assert error.max() < 5 * rounding + 5e-4  # of half floats
    assert error.max() < 0.05 * torch.stack(exact).std() + 5e-4
    assert codes.error_rms <= codes.error_max <= error.max() + 5e-4
    assert error.max() <= 1.3 * codes.error_max + 5e-4
    assert all(bool((shown(codes, i).diagonal() == 1).all()) for i in range(3))


def test_fewer_components_lose_the_least_possible() -> None:
    """Features of rank 5 are kept by five components; of isotropic ones, what is lost is as good as uncorrelated."""
    generator = torch.Generator().manual_seed(2)
    basis = torch.randn(64, 5, generator=generator)
    maps = [F.normalize((basis @ torch.randn(5, 30, generator=generator)).unflatten(1, (5, 6)), dim=0) for _ in "ab"]
    assert compress([m.half() for m in maps], 5).error_max < 0.02
    assert compress([m.half() for m in maps], 2).error_max > 0.1
    spread = [F.normalize(torch.randn(64, 20, 20, generator=generator), dim=0) for _ in "ab"]
    assert compress([m.half() for m in spread], 32).error_rms < 1.1 * (32 / 64**2) ** 0.5


def test_far_fewer_places_than_channels() -> None:
    """Nearly all eigenvalues are 0: in float32, the library's solver may not converge."""
    maps = [F.normalize(torch.rand(512, 2, 2, generator=torch.Generator().manual_seed(4)) ** 4, dim=0)]
    assert compress([m.half() for m in maps], 32).error_max < 0.02


def test_colors_use_their_range_and_resemble_those_they_are_compared_with() -> None:
    generator = torch.Generator().manual_seed(3)
    maps = [F.normalize(torch.randn(16, 12, 12, generator=generator), dim=0) for _ in "ab"]
    first = compress([m.half() for m in maps], 16)
    shades = np.stack([first.colors(i) for i in range(2)]).reshape(-1, 3)
    assert (shades.max(axis=0) == 255).all() and (shades.min(axis=0) == 0).all()
    opposite = [255 - first.colors(i) for i in range(2)]
    turned = compress([m.half() for m in maps], 16, opposite)
    agreement = [np.corrcoef(turned.colors(0)[..., c].ravel(), opposite[0][..., c].ravel())[0, 1] for c in range(3)]
    assert min(agreement) > 0.99
