"""Features of frozen backbones, and the linear probe on them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plrc.data.photometric import normalize
from plrc.errors import ConfigError
from plrc.pixels import IMAGENET
from plrc.transfer.probe import extract_features, probe_backbone


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
    features = extract_features(backbone, images, 8, batch_size=2)
    expected = F.avg_pool2d(normalize(images, IMAGENET), 8) / (1 + 1e-5)
    assert torch.allclose(features, expected, atol=1e-4)
    assert backbone.training
    assert backbone.norm.training
    assert not backbone.frozen.training
    assert torch.equal(backbone.norm.running_mean, torch.zeros(3))
    with pytest.raises(ConfigError, match=r"no level of stride 16; choose one of \[4, 8\]"):
        extract_features(backbone, images, 16)
    assert backbone.training
    assert not backbone.frozen.training


def test_probe_of_a_backbone_learns_colors_of_regions():
    """Each class has a mean color: pooled colors tell it. Half of the images are tested, unseen."""
    draw = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 3, (16, 4, 4), generator=draw)
    labels = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    colors = torch.tensor([(200, 60, 60), (60, 200, 60), (60, 60, 200)])
    images = (colors[labels] + torch.randint(-40, 41, (16, 32, 32, 3), generator=draw)).permute(0, 3, 1, 2)
    images = images.to(torch.uint8).contiguous()
    result = probe_backbone(Pooled(), (images[:8], labels[:8]), (images[8:], labels[8:]), stride=4, classes=3)
    assert result.miou > 0.85
    assert len(result.per_class) == 3
