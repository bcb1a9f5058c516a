"""The dense probe against its definition and hand-counted cases."""

import math

import pytest
import torch
from torch.nn import functional as F

from plrc.errors import DataError
from plrc.measures.linear_probe import LinearProbe, evaluate_probe, fit_probe


@pytest.fixture(scope="module")
def blocks():
    """Labels [12, 16, 16] of 3 classes in 4 x 4 blocks; features [12, 6, 4, 4]: noisy linear codes of the classes."""
    draw = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 3, (12, 4, 4), generator=draw)
    codes = torch.randn(3, 6, generator=draw)
    features = 7 + 5 * (codes[cells] + 0.2 * torch.randn(12, 4, 4, 6, generator=draw)).permute(0, 3, 1, 2)
    return features, cells.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_separable_features_are_learned_and_noise_is_not(blocks):
    features, labels = blocks
    result = evaluate_probe(fit_probe(features[:8], labels[:8], 3), features[8:], labels[8:])
    assert result.accuracy > 0.8  # the rest are pixels near the borders of blocks, where features are blended
    assert result.miou > 0.65
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    assert evaluate_probe(fit_probe(noise[:8], labels[:8], 3), noise[8:], labels[8:]).accuracy < 0.5


def test_the_fit_is_the_minimum_of_the_loss_on_upsampled_logits(blocks):
    """With every pixel drawn the loss is the standard one (1 x 1 convolution, bilinear logits): its gradient is 0."""
    features, labels = blocks
    decay = 1e-2
    fitted = fit_probe(features, labels, 3, pixels=labels.numel(), decay=decay)
    upsampled = F.interpolate(features.double(), (16, 16), mode="bilinear", align_corners=False)
    std = upsampled.std(dim=(0, 2, 3), correction=0)

    def gradient(weight, bias):
        weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
        logits = F.conv2d(features.double(), weight[:, :, None, None], bias)
        logits = F.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, labels) + decay / 2 * (weight * std).square().sum()
        return max(float(g.abs().max()) for g in torch.autograd.grad(loss, (weight, bias)))

    at_minimum, near_it = gradient(fitted.weight, fitted.bias), gradient(0.9 * fitted.weight, fitted.bias)
    assert at_minimum < 2e-3
    assert at_minimum < 0.02 * near_it


def test_the_fit_does_not_depend_on_the_scale_of_channels(blocks):
    features, labels = blocks
    scale, shift = torch.logspace(-2, 3, 6)[:, None, None], torch.arange(6.0)[:, None, None]
    plain = fit_probe(features, labels, 3)(features)
    scaled = fit_probe(features * scale + shift, labels, 3)(features * scale + shift)
    assert torch.allclose(plain, scaled, atol=0.05)


def test_same_seed_same_probe_other_seed_other_pixels(blocks):
    features, labels = blocks
    first, again, other = (fit_probe(features, labels, 3, pixels=500, seed=s) for s in (4, 4, 5))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_ignored_pixels_change_nothing(blocks):
    features, labels = blocks
    hidden = labels.clone()
    hidden[:, :, 8:] = 255
    spoiled = features.clone()
    spoiled[:, :, :, 3] = 1e4  # read only by pixels from column 10 on
    a, b = fit_probe(features, hidden, 3), fit_probe(spoiled, hidden, 3)
    assert torch.equal(a.weight, b.weight)
    scored = evaluate_probe(a, features, hidden)
    assert scored == evaluate_probe(a, spoiled, hidden)
    wrong_there = labels.clone()
    wrong_there[:, :, 8:] = (wrong_there[:, :, 8:] + 1) % 3
    assert evaluate_probe(a, features, wrong_there).accuracy < scored.accuracy


def test_scores_of_a_hand_counted_case():
    """2 x 4 pixels, 4 classes, one never seen or predicted, one only predicted, one pixel ignored."""
    truth = torch.tensor([[[0, 0, 1, 1], [0, 255, 1, 1]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [2, 0, 1, 1]]])
    features = F.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
    result = evaluate_probe(LinearProbe(torch.eye(4), torch.zeros(4)), features, truth)
    assert result.accuracy == pytest.approx(5 / 7)
    assert result.per_class[:3] == pytest.approx((1 / 3, 4 / 5, 0))
    assert math.isnan(result.per_class[3])
    assert result.miou == pytest.approx((1 / 3 + 4 / 5) / 3)


def test_labels_that_cannot_be_used(blocks):
    features, labels = blocks
    with pytest.raises(DataError, match="the labels contain class 2; use 0 to 1"):
        fit_probe(features, labels, 2)
    with pytest.raises(ValueError, match="12 feature maps and 11 label maps"):
        fit_probe(features, labels[1:], 3)
    with pytest.raises(DataError, match="every pixel of the labels is 255"):
        fit_probe(features, torch.full_like(labels, 255), 3)
    with pytest.raises(DataError, match="every pixel of the labels is 255"):
        evaluate_probe(fit_probe(features, labels, 3), features, torch.full_like(labels, 255))
