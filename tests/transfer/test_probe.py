"""The dense probe against its definition and hand-counted cases; grouping on features whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plrc.data.photometric import normalize
from plrc.errors import PlrcError
from plrc.measures.grouping import grouping_auc, weighted_auc
from plrc.scenes import render_scene
from plrc.transfer.probe import Probe, evaluate, extract, fit_probe, probe


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def instances():
    return torch.from_numpy(np.stack([render_scene(2, index, 64).masks for index in range(30)]))


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
    result = evaluate(fit_probe(features[:8], labels[:8], 3), features[8:], labels[8:])
    assert result.accuracy > 0.8  # the rest are pixels near the borders of blocks, where features are blended
    assert result.miou > 0.65
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    assert evaluate(fit_probe(noise[:8], labels[:8], 3), noise[8:], labels[8:]).accuracy < 0.5


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
    scored = evaluate(a, features, hidden)
    assert scored == evaluate(a, spoiled, hidden)
    wrong_there = labels.clone()
    wrong_there[:, :, 8:] = (wrong_there[:, :, 8:] + 1) % 3
    assert evaluate(a, features, wrong_there).accuracy < scored.accuracy


def test_scores_of_a_hand_counted_case():
    """2 x 4 pixels, 4 classes, one never seen or predicted, one only predicted, one pixel ignored."""
    truth = torch.tensor([[[0, 0, 1, 1], [0, 255, 1, 1]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [2, 0, 1, 1]]])
    features = F.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
    result = evaluate(Probe(torch.eye(4), torch.zeros(4)), features, truth)
    assert result.accuracy == pytest.approx(5 / 7)
    assert result.per_class[:3] == pytest.approx((1 / 3, 4 / 5, 0))
    assert math.isnan(result.per_class[3])
    assert result.miou == pytest.approx((1 / 3 + 4 / 5) / 3)


def test_mistakes_are_told(blocks):
    features, labels = blocks
    with pytest.raises(PlrcError, match="the labels hold class 2; write 0 to 1"):
        fit_probe(features, labels, 2)
    with pytest.raises(PlrcError, match="12 feature maps came with 11 label maps"):
        fit_probe(features, labels[1:], 3)
    with pytest.raises(PlrcError, match="every pixel of the labels is 255"):
        fit_probe(features, torch.full_like(labels, 255), 3)
    with pytest.raises(PlrcError, match="every pixel of the labels is 255"):
        evaluate(fit_probe(features, labels, 3), features, torch.full_like(labels, 255))
    with pytest.raises(PlrcError, match="same object"):
        grouping_auc(features, torch.zeros(12, 8, 8, dtype=torch.long))


class Pooled(nn.Module):
    """A backbone with two levels and modules in different modes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, images):
        x = self.frozen(self.norm(images))
        return {4: F.avg_pool2d(x, 4), 8: F.avg_pool2d(x, 8)}


def test_extract_uses_evaluation_mode_and_puts_every_mode_back():
    backbone = Pooled()
    images = torch.randint(0, 256, (5, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extract(backbone, images, 8, batch=2)
    expected = F.avg_pool2d(normalize(images), 8) / (1 + 1e-5)
    assert torch.allclose(features, expected, atol=1e-4)
    assert backbone.training
    assert backbone.norm.training
    assert not backbone.frozen.training
    assert torch.equal(backbone.norm.running_mean, torch.zeros(3))
    with pytest.raises(PlrcError, match=r"no level of stride 16; choose one of \[4, 8\]"):
        extract(backbone, images, 16)
    assert backbone.training
    assert not backbone.frozen.training


def test_probe_of_a_backbone_learns_colours_of_regions():
    """Each class has a mean color: pooled colors tell it. Half of the images are tested, unseen."""
    draw = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 3, (16, 4, 4), generator=draw)
    labels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    colors = torch.tensor([(200, 60, 60), (60, 200, 60), (60, 60, 200)])
    images = (colors[labels] + torch.randint(-40, 41, (16, 32, 32, 3), generator=draw)).permute(0, 3, 1, 2)
    images = images.to(torch.uint8).contiguous()
    result = probe(Pooled(), (images[:8], labels[:8]), (images[8:], labels[8:]), stride=4, classes=3)
    assert result.miou > 0.85
    assert len(result.per_class) == 3


def one_hot(instances):
    return F.one_hot(instances.long()).permute(0, 3, 1, 2).float()


def position_code(count):
    """Features [count, 4, 16, 16] that know where they are and nothing else."""
    at = (torch.arange(16.0) + 0.5) / 16 * 3
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x.sin(), x.cos(), y.sin(), y.cos()])[None].expand(count, -1, -1, -1)


def test_grouping_of_true_instances_is_perfect(instances):
    assert grouping_auc(one_hot(instances), instances) == pytest.approx(1.0)


def test_grouping_of_noise_is_chance(instances):
    noise = torch.randn(len(instances), 32, 64, 64, generator=torch.Generator().manual_seed(0))
    assert grouping_auc(noise, instances) == pytest.approx(0.5, abs=0.02)


def test_position_alone_passes_for_grouping_unless_distances_are_matched(instances):
    features = position_code(len(instances))
    assert grouping_auc(features, instances) == pytest.approx(0.5, abs=0.03)
    assert grouping_auc(features, instances, match_distance=False) > 0.85


def test_grouping_sees_objects_through_position(instances):
    """A little of the truth added to position raises the measure from chance."""
    truth = F.interpolate(one_hot(instances), (16, 16), mode="area")
    mixed = torch.cat([position_code(len(instances)), truth], dim=1)
    assert grouping_auc(mixed, instances) > 0.8


def test_unlabelled_pixels_are_never_drawn(instances):
    hidden = instances.clone()
    hidden[:, 32:] = -1
    spoiled = one_hot(instances)
    spoiled[:, :, 33:] = torch.nan  # row 32 is a neighbour of row 31 in bilinear reading, with weight 0
    spoiled[:, :, 32] = 0
    assert grouping_auc(spoiled, hidden) == pytest.approx(1.0)


def test_grouping_is_repeatable_and_seeded(instances):
    features = position_code(len(instances)) + 0.1 * one_hot(instances)[:, :1, :16, :16]
    assert grouping_auc(features, instances, seed=1) == grouping_auc(features, instances, seed=1)
    assert grouping_auc(features, instances, seed=1) != grouping_auc(features, instances, seed=2)


def test_weighted_auc_counts_pairs():
    """Against the definition, with ties and weights."""
    rng = np.random.default_rng(0)
    score, positive, weight = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4, rng.random(60)
    won = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            won += weight[i] * weight[j] * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
            total += weight[i] * weight[j]
    assert weighted_auc(score, positive, weight) == pytest.approx(won / total, rel=1e-12)
