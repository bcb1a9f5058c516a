"""Color, gray and blur against direct formulas, one step at a time, and what must never happen to a view."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from plrc.config import ViewConfig
from plrc.data import photometric
from plrc.data.photometric import color_draws
from plrc.pixels import IMAGENET

NONE = ViewConfig(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)
DRAWS = color_draws(3)
augment = partial(photometric.augment, statistics=IMAGENET)
normalize = partial(photometric.normalize, statistics=IMAGENET)
JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SIGMA = range(DRAWS)


def images(count: int = 4, size: int = 40, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(low, high, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def uniforms(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))


def plain(normalized: Tensor) -> Tensor:
    """Back to values in [0, 1]."""
    return normalized * torch.tensor(IMAGENET.std)[:, None, None] + torch.tensor(IMAGENET.mean)[:, None, None]


def only(**amounts: float) -> ViewConfig:
    """Jitter of nothing but `amounts`, always."""
    return dataclasses.replace(
        NONE, jitter_prob=1.0, **({"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | amounts)
    )


def luma(colors: Tensor) -> Tensor:
    return (colors * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(-3)


def test_normalize_is_the_formula() -> None:
    given = images()
    expected = (given.double() / 255 - torch.tensor(IMAGENET.mean)[:, None, None]) / torch.tensor(IMAGENET.std)[
        :, None, None
    ]
    torch.testing.assert_close(normalize(given).double(), expected, atol=1e-6, rtol=1e-6)
    assert normalize(given).dtype == torch.float32


def test_the_colors_of_the_teachers_views_are_left_as_they_are_if_asked() -> None:
    views = images(12).unflatten(0, (3, 4))
    uniform = uniforms(12).unflatten(0, (3, 4))
    config = ViewConfig(jitter_prob=1.0, gray_prob=0.0)
    everywhere = photometric.augment_views(views, uniform, config, IMAGENET)
    assert torch.equal(everywhere.flatten(0, 1), augment(views.flatten(0, 1), uniform.flatten(0, 1), config))
    left = photometric.augment_views(views, uniform, dataclasses.replace(config, teacher_color=False), IMAGENET)
    assert torch.equal(left[0], everywhere[0])
    assert torch.equal(left[1:].flatten(0, 1), normalize(views[1:].flatten(0, 1)))
    assert not torch.equal(left[1:], everywhere[1:])


def test_nothing_happens_with_probability_zero() -> None:
    torch.testing.assert_close(augment(images(), uniforms(), NONE), normalize(images()), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.7, 1.2])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_single_factors_are_torchvisions_where_nothing_is_clamped(name: str, factor: float) -> None:
    given, uniform = images(low=90, high=150), uniforms()
    uniform[:, {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION}[name]] = (factor - 0.6) / 0.8
    got = plain(augment(given, uniform, only(**{name: 0.4})))
    expected = getattr(tv, f"adjust_{name}")(given.float() / 255, factor)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)  # torchvision's gray weights sum to 0.9999


def test_hue_keeps_luma_and_chroma_and_turns_it_by_the_angle() -> None:
    given, uniform = images(low=100, high=150), uniforms()
    uniform[:, HUE] = 0.9
    got, before = plain(augment(given, uniform, only(hue=0.1))), given.float() / 255
    torch.testing.assert_close(luma(got), luma(before), atol=1e-5, rtol=0)
    rows = torch.tensor([[0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    chroma_before, chroma = (torch.einsum("kc,nchw->knhw", rows, x) for x in (before, got))
    turn = torch.complex(*chroma) / torch.complex(*chroma_before)
    angle = 2 * math.pi * 0.1 * (2 * 0.9 - 1)
    colored = torch.complex(*chroma_before).abs() > 0.02
    torch.testing.assert_close(turn[colored].angle(), torch.full_like(turn[colored].real, angle), atol=2e-3, rtol=0)
    torch.testing.assert_close(turn[colored].abs(), torch.ones_like(turn[colored].real), atol=2e-3, rtol=0)


def test_steps_follow_one_another_in_the_stated_order() -> None:
    given, uniform = images(low=100, high=140), uniforms(seed=3)
    got = plain(augment(given, uniform, only(brightness=0.2, contrast=0.4, saturation=0.4)))
    for image, draws, result in zip(given.double() / 255, uniform.double(), got, strict=True):
        image = image * (1 + 0.2 * (2 * draws[BRIGHTNESS] - 1))
        contrast, saturation = (1 + 0.4 * (2 * draws[k] - 1) for k in (CONTRAST, SATURATION))
        image = contrast * image + (1 - contrast) * luma(image).mean()
        image = saturation * image + (1 - saturation) * luma(image)
        torch.testing.assert_close(result.double(), image, atol=1e-5, rtol=0)


def test_values_stay_between_black_and_white() -> None:
    config = ViewConfig(jitter_prob=1.0, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    got = plain(augment(images(64, 16), uniforms(64), config))
    assert got.min() >= -1e-5
    assert got.max() <= 1 + 1e-5
    assert (got < 1e-4).any()
    assert (got > 1 - 1e-4).any()


def test_gray_makes_equal_channels_of_the_luma() -> None:
    got = plain(augment(images(), uniforms(), dataclasses.replace(NONE, gray_prob=1.0)))
    expected = luma(images().float() / 255)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


def test_probabilities_choose_the_views() -> None:
    uniform = uniforms(400)
    got = plain(augment(images(400, 16), uniform, dataclasses.replace(NONE, gray_prob=0.2)))
    is_gray = (got.amax(1) - got.amin(1)).amax((1, 2)) < 1e-4
    assert torch.equal(is_gray, uniform[:, GREY] < 0.2)
    changed = (
        augment(images(400, 16), uniform, ViewConfig(jitter_prob=0.8, gray_prob=0.0, blur_prob=0.0))
        - normalize(images(400, 16))
    ).abs()
    assert torch.equal(changed.amax((1, 2, 3)) > 1e-3, uniform[:, JITTER] < 0.8)


@pytest.mark.parametrize("size", [64, 100])
@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_of_an_impulse_is_a_gaussian(sigma: float, size: int) -> None:
    given = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    at = (size // 2 - 3, size // 2 + 5)
    given[:, :, at[0], at[1]] = 255
    uniform = uniforms(1)
    uniform[:, SIGMA] = (sigma - 0.1) / 1.9
    got = plain(augment(given, uniform, dataclasses.replace(NONE, blur_prob=1.0)))[0]
    line = torch.arange(size, dtype=torch.float64)
    rows, columns = (torch.exp(-((line - c) ** 2) / (2 * sigma**2)) for c in at)
    gaussian = rows[:, None] * columns[None]
    expected = (gaussian / gaussian.sum()).expand(3, -1, -1)
    cut = math.exp(-0.5 * (7 / sigma) ** 2)  # the first weight beyond the radius of 3 * 2 pixels, which is left out
    torch.testing.assert_close(got.double(), expected, atol=1.01 * cut * float(expected.max()) + 1e-6, rtol=1e-2)


def slow_blur(image: Tensor, sigma: float, reach: int) -> Tensor:
    """float64 [3, S, S]: pad by mirroring, then two loops over taps."""
    mirrored = torch.cat([image.flip(1)[:, -reach:], image, image.flip(1)[:, :reach]], dim=1)
    mirrored = torch.cat([mirrored.flip(2)[:, :, -reach:], mirrored, mirrored.flip(2)[:, :, :reach]], dim=2)
    taps = [math.exp(-0.5 * ((k - reach) / sigma) ** 2) for k in range(2 * reach + 1)]
    size, out = image.shape[1], torch.zeros_like(image)
    for r, row in enumerate(taps):
        for c, column in enumerate(taps):
            out += row * column * mirrored[:, r : r + size, c : c + size]
    return out / sum(taps) ** 2


@pytest.mark.parametrize(("size", "high"), [(40, 2.0), (33, 3.0), (64, 1.0)])
def test_blur_equals_a_slow_loop_up_to_the_border_and_keeps_the_mean(size: int, high: float) -> None:
    given, uniform = images(3, size), uniforms(3, seed=5)
    got = augment(given, uniform, dataclasses.replace(NONE, blur_prob=1.0, blur_sigma=(0.5, high)))
    for image, draws, result in zip(normalize(given).double(), uniform, got, strict=True):
        sigma = 0.5 + (high - 0.5) * float(draws[SIGMA])
        expected = slow_blur(image - image.mean((1, 2), keepdim=True), sigma, math.ceil(3 * high))
        expected = expected + image.mean((1, 2), keepdim=True)
        torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(got.mean((2, 3)), normalize(given).mean((2, 3)), atol=1e-5, rtol=0)


def test_a_kernel_wider_than_the_view_keeps_an_even_view_even() -> None:
    given = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    got = augment(given, uniforms(1), dataclasses.replace(NONE, blur_prob=1.0, blur_sigma=(50.0, 50.0)))
    torch.testing.assert_close(got, normalize(given), atol=1e-5, rtol=0)


def test_views_that_are_not_blurred_are_left_exactly_alone() -> None:
    given, uniform = images(40, 48), uniforms(40, seed=2)
    config = ViewConfig(jitter_prob=0.8, gray_prob=0.2, blur_prob=0.5)
    got, sharp = augment(given, uniform, config), augment(given, uniform, dataclasses.replace(config, blur_prob=0.0))
    blurred = uniform[:, BLUR] < 0.5
    assert 5 < blurred.sum() < 35
    assert torch.equal(got[~blurred], sharp[~blurred])
    assert ((got - sharp)[blurred].abs().amax((1, 2, 3)) > 0).all()


def test_one_blur_leaves_the_views_that_it_must_not_touch_exactly_alone() -> None:
    """What a GPU does, which leaves no view out."""
    given, uniform = images(40, 48), uniforms(40, seed=2)
    config = ViewConfig(jitter_prob=0.8, gray_prob=0.2, blur_prob=0.5)
    sharp = augment(given, uniform, dataclasses.replace(config, blur_prob=0.0))
    got = sharp.clone()
    photometric._blur(got, torch.empty_like(got), photometric._kernels(uniform[:, BLUR:], config))
    assert torch.equal(got[uniform[:, BLUR] >= 0.5], sharp[uniform[:, BLUR] >= 0.5])
    torch.testing.assert_close(got, augment(given, uniform, config), atol=1e-6, rtol=0)


def test_a_view_does_not_depend_on_its_batch_and_the_result_is_repeatable() -> None:
    given, uniform, config = images(9, 32), uniforms(9), ViewConfig()
    whole = augment(given, uniform, config)
    assert torch.equal(whole, augment(given, uniform, config))
    alone = torch.cat([augment(given[i : i + 1], uniform[i : i + 1], config) for i in range(9)])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)


def test_a_batch_larger_than_one_part_is_worked_on_whole() -> None:
    given, uniform, config = images(24, 256), uniforms(24), ViewConfig()  # three parts of 10, 10 and 4
    whole = augment(given, uniform, config)
    halves = torch.cat([augment(given[i : i + 7], uniform[i : i + 7], config) for i in range(0, 24, 7)])
    torch.testing.assert_close(whole, halves, atol=1e-5, rtol=0)
    assert augment(given[:0], uniform[:0], config).shape == (0, 3, 256, 256)


def test_inputs_stay_as_they_were_in_any_layout_and_under_autocast() -> None:
    given, uniform, config = images(), uniforms(), ViewConfig(blur_prob=1.0)
    expected = augment(given, uniform, config)
    assert torch.equal(given, images())
    assert torch.equal(uniform, uniforms())
    pixels = given.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(pixels, uniform, config), expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(given, uniform, config), expected)


def test_a_pattern_stays_where_it_is() -> None:
    size, center = 64, (20, 41)
    line = torch.arange(size, dtype=torch.float32)
    blob = torch.exp(-((line[:, None] - center[0]) ** 2 + (line[None] - center[1]) ** 2) / 18)
    given = (blob * 200).round().to(torch.uint8).expand(16, 3, -1, -1)
    config = ViewConfig(
        jitter_prob=1.0, contrast=0.0, blur_prob=1.0
    )  # contrast would shift the black ground, not the blob
    got = plain(augment(given, uniforms(16), config)).mean(1)
    mass = got.sum((1, 2))
    torch.testing.assert_close((got.sum(2) @ line) / mass, torch.full((16,), 20.0), atol=0.02, rtol=0)
    torch.testing.assert_close((got.sum(1) @ line) / mass, torch.full((16,), 41.0), atol=0.02, rtol=0)
