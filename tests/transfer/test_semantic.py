"""The FCN: lattice, dilation, what is trained, and what the seed decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc.data.photometric import normalize
from plrc.errors import PlrcError
from plrc.model.backbone import Backbone, build_backbone
from plrc.pixels import IMAGENET
from plrc.scenes import render_scene
from plrc.transfer.protocols import DetectorConfig
from plrc.transfer.semantic import build_segmenter

CONFIG = DetectorConfig(backbone="resnet18", width=16, dilation=2, head_norm="bn")


def backbone(seed: int = 0, name: str = "resnet18") -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone(name, layer4_stride=1)


def loss_of(model: nn.Module) -> Tensor:
    scenes = [render_scene(0, index, 64) for index in range(2)]
    images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes])
    labels = torch.stack([torch.from_numpy(scene.semantic).long() for scene in scenes])
    return F.cross_entropy(model(normalize(images, IMAGENET)), labels)


@pytest.mark.parametrize("norm", ["none", "bn", "sync", "gn"])
@pytest.mark.parametrize("size", [(64, 96), (45, 71)])
def test_one_logit_for_each_class_and_pixel(norm: str, size: tuple[int, int]) -> None:
    model = build_segmenter(backbone(), replace(CONFIG, head_norm=norm), 10, 0)
    assert model(torch.rand(2, 3, *size)).shape == (2, 10, *size)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layer4_is_dilated_on_the_lattice_of_stride_16(name: str) -> None:
    model = build_segmenter(backbone(name=name), CONFIG, 10, 0)
    body = model.body
    assert body(torch.rand(2, 3, 64, 96))[32].shape[2:] == (4, 6)
    convolutions = [m for m in body.net.modules() if isinstance(m, nn.Conv2d)]
    dilated = [m for m in convolutions if m.dilation == (2, 2)]
    blocks = len(body.net.layer4)
    assert len(dilated) == (2 * blocks if name == "resnet18" else blocks)
    assert all(m.kernel_size == (3, 3) for m in dilated)
    head = [m for m in model.head.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size, m.dilation, m.out_channels) for m in head] == [
        ((3, 3), (2, 2), 16),
        ((3, 3), (2, 2), 16),
        ((1, 1), (1, 1), 10),
    ]


@pytest.mark.parametrize(("trainable", "norm"), [(5, "bn"), (5, "frozen"), (3, "bn"), (1, "sync")])
def test_a_step_trains_exactly_the_layers_that_are_set(trainable: int, norm: str) -> None:
    model = build_segmenter(backbone(), replace(CONFIG, trainable_layers=trainable, norm=norm), 10, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = loss_of(model.train())
    loss.backward()
    assert bool(torch.isfinite(loss))
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    tops = {name.removeprefix("body.net.").partition(".")[0] for name in changed}
    stages = {"layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4, "conv1": 5}
    expected = {"head"} | {stage for stage, needed in stages.items() if needed <= trainable}
    assert tops - {"bn1"} == expected
    assert ("bn1" in tops) == (trainable == 5 and norm != "frozen")
    assert any("body" in name and "running" in name for name in changed) == (norm != "frozen")


def test_the_head_follows_from_the_seed_alone() -> None:
    def head(weights: int, seed: int) -> list[Tensor]:
        return list(build_segmenter(backbone(weights), CONFIG, 10, seed).head.parameters())

    assert all(torch.equal(a, b) for a, b in zip(head(1, 0), head(2, 0), strict=True))
    assert not torch.equal(head(1, 0)[0], head(1, 1)[0])


def test_a_timm_backbone_is_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(PlrcError, match=r"semantic task as set needs a torchvision ResNet.*--model\.backbone"):
        build_segmenter(build_backbone("timm:resnet10t"), CONFIG, 10, 0)
