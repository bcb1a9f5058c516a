"""Detectors around a backbone: what comes out, what is trained, what stays as it is, and what the seed decides."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plrc.errors import PlrcError
from plrc.model.backbone import Backbone, build_backbone
from plrc.pixels import IMAGENET
from plrc.scenes import render_scene
from plrc.transfer.detectors import build_detector
from plrc.transfer.norms import FrozenBatchNorm2d, norm_layer
from plrc.transfer.protocols import DetectorConfig, InputConfig

SIZE, CLASSES = 64, 9
INPUT = InputConfig(train_size=(SIZE, SIZE), test_size=SIZE, max_size=SIZE)
FPN = DetectorConfig(backbone="resnet18", width=32, min_stride=8, hidden=32, rois_per_image=16, anchors=4.0)
C4 = replace(FPN, neck="c4")
STAGES = ["stem", "layer1", "layer2", "layer3", "layer4"]


def backbone(seed: int = 0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone("resnet18")


def detector(config: DetectorConfig, masks: bool = False, seed: int = 0, size: InputConfig = INPUT) -> Any:
    return build_detector(backbone(), config, size, CLASSES, masks, seed)


def batch(objects: bool = True) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two scenes with their labels, or with none."""
    images, targets = [], []
    for index in range(2):
        scene = render_scene(0, index, SIZE)
        count = len(scene.classes) if objects else 0
        ids = torch.arange(1, count + 1)[:, None, None]
        images.append(torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255)
        targets.append(
            {
                "boxes": torch.from_numpy(scene.boxes)[:count],
                "labels": torch.from_numpy(scene.classes)[:count] + 1,
                "masks": (torch.from_numpy(scene.masks)[None] == ids).to(torch.uint8),
            }
        )
    return images, targets


def step(model: Any, objects: bool = True) -> dict[str, Tensor]:
    """One step of SGD; returns the losses."""
    torch.manual_seed(0)
    losses: dict[str, Tensor] = model.train()(*batch(objects))
    torch.stack(list(losses.values())).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01).step()
    return losses


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def stage(name: str) -> str:
    """The stage of a backbone's tensor; empty for another part of the detector."""
    _, inside, own = name.partition("body.net.")
    first = own.partition(".")[0]
    return (first if first in STAGES else "stem") if inside else ""


@pytest.mark.parametrize(("norms", "masks"), [("none", True), ("bn", False), ("sync", True), ("gn", True)])
@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
def test_a_step_and_a_prediction(norms: str, config: DetectorConfig, masks: bool) -> None:
    model = detector(replace(config, head_norm=norms, norm="sync"), masks)
    before = copied(model)
    losses = step(model)
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert losses.keys() == (names | {"loss_mask"} if masks else names)
    assert all(bool(torch.isfinite(loss)) and loss > 0 for loss in losses.values())
    assert [n for n, p in model.named_parameters() if torch.equal(before[n], p)] == []

    model.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        found = model.eval()([torch.rand(3, 50, 70)])[0]
    count = len(found["boxes"])
    assert 0 < count <= 100
    assert found["boxes"].shape == (count, 4)
    assert found["boxes"].max() <= 70
    assert set(found["labels"].tolist()) <= set(range(1, CLASSES + 1))
    assert not masks or found["masks"].shape == (count, 1, 50, 70)


@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
def test_images_without_objects_are_trained_on(config: DetectorConfig) -> None:
    model = detector(replace(config, head_norm="bn"), masks=True)
    losses = step(model, objects=False)
    assert losses["loss_mask"] == 0
    assert losses["loss_box_reg"] == 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
@pytest.mark.parametrize("norm", ["bn", "frozen", "sync"])
@pytest.mark.parametrize("trainable", [1, 3, 5])
def test_what_is_trained_and_what_stays(trainable: int, norm: str, config: DetectorConfig) -> None:
    model = detector(replace(config, trainable_layers=trainable, norm=norm))
    before = copied(model)
    step(model)
    upper = set(STAGES[5 - trainable :])
    with_gradient = {stage(n) for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert with_gradient == upper | {""}
    assert {stage(n) for n, p in model.named_parameters() if not p.requires_grad} >= set(STAGES) - upper

    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(before[n], tensor)}
    buffers = {stage(n) for n in changed if "running" in n or "num_batches" in n}
    assert {stage(n) for n in changed} == upper | {""}
    assert buffers == (set() if norm == "frozen" else upper)
    affine = {n for n in changed if stage(n) and ".bn" in n and n.endswith(("weight", "bias"))}
    assert bool(affine) == (norm != "frozen")


def test_frozen_normalization_uses_its_statistics_and_keeps_values_and_names() -> None:
    given = backbone()
    with torch.no_grad():
        for name, tensor in given.net.state_dict().items():
            if "running" in name:
                tensor.uniform_(0.5, 2)
    state = copied(given.net)
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = given.eval()(images)[32]
    model = build_detector(given, replace(FPN, norm="frozen"), INPUT, CLASSES, False, 0).train()
    assert given.net.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.net.state_dict().items())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in model.modules()) == 20
    with torch.no_grad():
        torch.testing.assert_close(given(images)[32], expected)


@pytest.mark.parametrize("masks", [False, True])
def test_c4_runs_the_backbones_own_layer4_once_a_step(masks: bool) -> None:
    model = detector(replace(C4, head_norm="bn"), masks)
    seen: list[tuple[torch.Size, torch.Size]] = []
    layer4 = model.backbone.body.net.layer4
    layer4.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    step(model)
    assert seen == [((32, 256, 14, 14), (32, 512, 7, 7))]
    tensors = model.state_dict().values()
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)  # one name for each
    assert layer4[0].conv1.weight.grad.any()


def test_c4_has_its_normalization_and_anchors() -> None:
    heads = {norm: detector(replace(C4, head_norm=norm), True) for norm in ("none", "bn")}
    assert [type(m) for m in heads["bn"].roi_heads.box_head][1:] == [nn.BatchNorm2d]
    assert len(heads["none"].roi_heads.box_head) == 1
    assert heads["bn"].rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert heads["bn"].rpn.anchor_generator.num_anchors_per_location() == [15]


def test_c4_masks_in_training_are_those_of_the_objects() -> None:
    """The one pass of layer4 gives the mask loss that torchvision gets from a second pass (statistics being fixed)."""
    model = detector(replace(C4, norm="frozen"), masks=True).train()
    images, targets = batch()
    resized, targets = model.transform(images, targets)
    features = model.backbone(resized.tensors)
    background = torch.tensor([[0.0, 0, 5, 5], [50, 50, 63, 63], [0, 55, 9, 63]])
    proposals = [torch.cat([background, target["boxes"] + 2]) for target in targets]

    def losses(heads_class: type) -> dict[str, Tensor]:
        torch.manual_seed(1)
        found: dict[str, Tensor] = heads_class.forward(
            model.roi_heads, features, proposals, resized.image_sizes, targets
        )[1]
        return found

    ours, theirs = (losses(kind) for kind in type(model.roi_heads).__mro__[:2])
    assert ours.keys() == theirs.keys()
    for name, loss in ours.items():
        torch.testing.assert_close(loss, theirs[name])


def test_the_pyramid() -> None:
    images = torch.rand(1, 3, 128, 128)
    for finest, sides in ((8, [16, 8, 4, 2]), (4, [32, 16, 8, 4, 2])):
        model = detector(replace(FPN, min_stride=finest))
        levels = model.backbone(images)
        assert [level.shape for level in levels.values()] == [(1, 32, side, side) for side in sides]
        strides = [128 // side for side in sides]
        assert model.rpn.anchor_generator.sizes == tuple((4.0 * stride,) for stride in strides)


@pytest.mark.parametrize("kind", ["none", "bn", "gn"])
def test_norms_of_the_heads(kind: str) -> None:
    model = detector(replace(FPN, head_norm=kind, width=48), masks=True)
    norms = [
        module
        for part in (model.backbone.fpn, model.roi_heads)
        for module in part.modules()
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))
    ]
    assert len(norms) == (0 if kind == "none" else 2 * 3 + 4 + 4)  # pyramid, box head, mask head
    assert {module.num_groups for module in norms if isinstance(module, nn.GroupNorm)} <= {16}
    assert isinstance(norm_layer("gn")(256), nn.GroupNorm) and norm_layer("gn")(256).num_groups == 32


@pytest.mark.parametrize("config", [FPN, C4], ids=["fpn", "c4"])
def test_the_heads_follow_from_the_seed_alone(config: DetectorConfig) -> None:
    def heads(weights: int, seed: int) -> dict[str, Tensor]:
        torch.rand(weights + 1)  # the global generator's state does not matter
        model = build_detector(backbone(weights), config, INPUT, CLASSES, True, seed)
        return {name: tensor for name, tensor in model.state_dict().items() if not stage(name)}

    first, other, seeded = heads(1, 0), heads(2, 0), heads(1, 1)
    assert all(torch.equal(first[name], other[name]) for name in first)
    assert not any(torch.equal(first[name], seeded[name]) for name in first if name.endswith("weight"))


def test_building_leaves_the_global_generator_alone() -> None:
    given = backbone()
    torch.manual_seed(7)
    build_detector(given, FPN, INPUT, CLASSES, True, 0)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))


def test_sizes_of_the_input() -> None:
    model = detector(FPN, size=InputConfig(train_size=(64, 128), test_size=80, max_size=150))
    image = torch.rand(3, 40, 50)
    torch.manual_seed(0)
    sizes = {model.train().transform([image])[0].image_sizes[0][0] for _ in range(30)}
    assert sizes == {64, 96, 120}  # 128 would make the longer side 160
    assert {model.eval().transform([image])[0].image_sizes[0] for _ in range(3)} == {(80, 100)}


def test_images_are_normalized_as_in_pre_training() -> None:
    image = torch.full((3, SIZE, SIZE), 0.25)
    seen = detector(FPN).eval().transform([image])[0].tensors[0, :, 0, 0]
    torch.testing.assert_close(seen, (0.25 - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"neck": "c4"}, "model.neck as set needs a torchvision ResNet.*write --model.neck fpn"),
        ({"norm": "frozen"}, "write --model.norm bn"),
        ({"trainable_layers": 3}, "write --model.norm bn --model.trainable-layers 5"),
    ],
)
def test_what_a_timm_backbone_cannot_be(changes: dict[str, Any], complaint: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(PlrcError, match=complaint):
        build_detector(build_backbone("timm:resnet10t"), replace(FPN, **changes), INPUT, CLASSES, False, 0)


def test_backbones_must_take_images_of_any_size() -> None:
    pytest.importorskip("timm")
    build_detector(build_backbone("timm:test_vit"), FPN, INPUT, CLASSES, False, 0)
    with pytest.raises(PlrcError, match="pads images to multiples of 32 px, which timm:vit_small_patch14_dinov2 does"):
        build_detector(build_backbone("timm:vit_small_patch14_dinov2"), FPN, INPUT, CLASSES, False, 0)


def test_predictions_do_not_depend_on_the_image_before() -> None:
    """A low image is padded to twice its height, from which torchvision would infer scales of twice the size."""
    model = detector(replace(FPN, proposals=20), size=InputConfig(train_size=(64, 128), test_size=192, max_size=320))
    again = copy.deepcopy(model)
    low, usual = torch.rand(3, 160, 1280), torch.rand(3, 96, 96)
    with torch.no_grad():
        model.eval()([low])
        after, alone = model([usual])[0], again.eval()([usual])[0]
    assert len(alone["scores"]) > 0
    for name in alone:
        assert torch.equal(after[name], alone[name])


def test_a_timm_backbone_with_a_pyramid() -> None:
    pytest.importorskip("timm")
    model = build_detector(build_backbone("timm:resnet10t"), FPN, INPUT, CLASSES, False, 0)
    assert all(bool(torch.isfinite(loss)) for loss in step(model).values())
