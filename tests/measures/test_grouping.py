"""Grouping of features whose answer is known."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from plrc.errors import DataError
from plrc.measures.grouping import grouping_auc, weighted_auc
from plrc.scenes import render_scene


@pytest.fixture(scope="module")
def instances():
    return torch.from_numpy(np.stack([render_scene(2, index, 64).masks for index in range(30)]))


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
    spoiled[:, :, 33:] = torch.nan  # row 32 is a neighbor of row 31 in bilinear reading, with weight 0
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


def test_objects_without_pairs_at_equal_distances_are_an_error():
    instances = torch.full((1, 1, 5), -1)  # only these pixels are drawn
    instances[0, 0, 0:2] = 1
    instances[0, 0, 4] = 2
    with pytest.raises(DataError, match="at equal distances"):
        grouping_auc(torch.rand(1, 4, 1, 5), instances)


def test_images_without_objects_are_an_error():
    with pytest.raises(DataError, match="same object"):
        grouping_auc(torch.rand(2, 4, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long))
