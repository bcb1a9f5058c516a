"""The networks: strides and widths, tensor names, layers that are skipped, BatchNorm groups, the teacher."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from plrc.config import ModelConfig
from plrc.errors import ConfigError
from plrc.model import Backbone, Network, build_backbone, feature_side, make_teacher, update_teacher

SMALL = ModelConfig(
    backbone="resnet18", contrast_hidden=12, contrast_dim=6, distill_hidden=10, distill_dim=7, bn_groups=1
)
KEEP, DROP = torch.tensor(True), torch.tensor(False)


@pytest.fixture(scope="module")
def resnet18() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("resnet18").eval()


def images(count: int = 2, size: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small_network(**changes: object) -> Network:
    torch.manual_seed(2)
    return Network(ModelConfig(**{**SMALL.__dict__, **changes}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "widths"), [("resnet18", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048))])
def test_torchvision_levels_strides_and_names(name: str, widths: tuple[int, ...]) -> None:
    backbone = build_backbone(name).eval()
    assert backbone.channels == dict(zip((4, 8, 16, 32), widths, strict=True))
    with torch.no_grad():
        levels = backbone(images(1, size=72))
    assert {s: f.shape for s, f in levels.items()} == {
        s: (1, c, math.ceil(72 / s), math.ceil(72 / s)) for s, c in backbone.channels.items()
    }
    theirs = torchvision.models.get_model(name, weights=None).state_dict()
    mine = backbone.net.state_dict()
    assert [n for n in theirs if not n.startswith("fc.")] == list(mine)
    assert all(mine[n].shape == theirs[n].shape for n in mine)


def test_torchvision_levels_are_those_of_torchvision(resnet18: Backbone) -> None:
    """The deepest level, pooled, through torchvision's own classifier gives torchvision's own output."""
    whole = torchvision.models.resnet18(weights=None).eval()
    assert whole.load_state_dict(resnet18.net.state_dict(), strict=False).missing_keys == ["fc.weight", "fc.bias"]
    with torch.no_grad():
        assert torch.equal(whole.fc(resnet18(images())[32].mean((2, 3))), whole(images()))


def test_timm_levels() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    backbone = build_backbone("timm:test_resnet").eval()
    with torch.no_grad():
        levels = backbone(images(1))
    assert {s: (f.shape[1], f.shape[2]) for s, f in levels.items()} == {
        s: (c, 64 // s) for s, c in backbone.channels.items()
    }
    theirs = timm.create_model("test_resnet", pretrained=False).state_dict()
    mine = backbone.net.state_dict()
    assert mine.keys() < theirs.keys() and all(mine[n].shape == theirs[n].shape for n in mine)
    net = Network(ModelConfig(**{**SMALL.__dict__, "backbone": "timm:test_resnet", "strides": (16,)}))
    assert net(images(2))["contrast", 16].shape == (2, 6, 4, 4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layer4_with_stride_1_has_the_same_tensors_and_twice_the_lattice(name: str) -> None:
    torch.manual_seed(0)
    usual = build_backbone(name).eval()
    torch.manual_seed(0)
    dense = build_backbone(name, layer4_stride=1).eval()
    a, b = usual.state_dict(), dense.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    with torch.no_grad():
        few, many = usual(images(1)), dense(images(1))
    assert few[32].shape[-2:] == (2, 2) and many[32].shape[-2:] == (4, 4)
    assert all(torch.equal(few[s], many[s]) for s in (4, 8, 16))


@pytest.mark.parametrize(("stride", "layer4"), [(8, 2), (16, 1), (32, 1), (32, 2)])
def test_the_lattice_is_known_before_the_network_runs(stride: int, layer4: int) -> None:
    config = ModelConfig(**{**SMALL.__dict__, "strides": (stride,), "layer4_stride": layer4})
    with torch.no_grad():
        features = Network(config).eval()(images(1, size=72))
    assert features["contrast", stride].shape[-2:] == (feature_side(config, 72, stride),) * 2


def test_deeper_layers_are_skipped_without_a_change(resnet18: Backbone) -> None:
    ran: list[str] = []
    handles = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in resnet18.net.named_children()]
    with torch.no_grad():
        everything = resnet18(images())
        ran.clear()
        some = resnet18(images(), deepest=8)
    for handle in handles:
        handle.remove()
    assert ran == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
    assert list(some) == [4, 8] and all(torch.equal(some[s], everything[s]) for s in some)


def test_heads_run_on_the_trained_level_and_only_if_wanted() -> None:
    network = small_network(strides=(16,))
    out = network(images(4))
    assert {n: tuple(f.shape) for n, f in out.items()} == {
        ("contrast", 16): (4, 6, 4, 4),
        ("distill", 16): (4, 7, 4, 4),
    }
    assert list(network(images(4), heads=("distill",))) == [("distill", 16)]
    assert list(network(images(4), heads=("contrast", "frozen"))) == [("contrast", 16)]
    contrast_only = Network(SMALL, contrast=True, distill=False)
    assert list(contrast_only(images(2))) == [("contrast", 32)] and list(contrast_only.heads) == ["contrast"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.heads["contrast"].modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.heads["distill"].modules()) == 2


def test_several_levels_have_heads_of_their_own() -> None:
    torch.manual_seed(2)
    network = Network(ModelConfig(**{**SMALL.__dict__, "strides": (8, 32)}), frozen_dim=5)
    out = network(images(4))
    assert {n: tuple(f.shape) for n, f in out.items()} == {
        ("contrast", 8): (4, 6, 8, 8),
        ("contrast", 32): (4, 6, 2, 2),
        ("distill", 8): (4, 7, 8, 8),
        ("distill", 32): (4, 7, 2, 2),
        ("frozen", 8): (4, 5, 8, 8),
        ("frozen", 32): (4, 5, 2, 2),
    }
    with torch.no_grad():  # a head reads the level of its stride
        level = network.backbone.eval()(images(4))[8]
        torch.testing.assert_close(network.eval()(images(4))["contrast", 8], network.heads["contrast"]["8"](level))


def test_groups_pass_alone() -> None:
    """Features, and BatchNorm's buffers, are those of one pass after the other, down to the last bit."""
    grouped, single = small_network(), small_network()
    joined = grouped(images(6), groups=2)
    first, second = single(images(6)[:3]), single(images(6)[3:])
    for name, features in joined.items():
        assert torch.equal(features, torch.cat([first[name], second[name]]))
    one, other = grouped.state_dict(), single.state_dict()
    assert all(torch.equal(one[n], other[n]) for n in one)
    together = small_network()(images(6))
    assert not torch.allclose(together["contrast", 32], joined["contrast", 32], atol=1e-3)


def test_groups_statistics_by_hand() -> None:
    network = small_network()
    before = network.backbone.net.conv1(images(6)).detach()
    network(images(6), groups=3)
    expected = torch.zeros(64)
    for group in before.split(2):
        expected = 0.9 * expected + 0.1 * group.mean((0, 2, 3))
    bn = network.backbone.net.bn1
    torch.testing.assert_close(bn.running_mean, expected)
    assert bn.num_batches_tracked == 3


def test_groups_that_do_not_divide_are_as_equal_as_can_be() -> None:
    network, sizes = small_network(), []
    network.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    assert network(images(10, size=32), groups=4)["contrast", 32].shape[0] == 10
    assert sizes == [3, 3, 2, 2]


def test_teacher_starts_as_the_student_and_has_no_gradient() -> None:
    student = small_network()
    teacher = make_teacher(student)
    assert all(not p.requires_grad for p in teacher.parameters()) and all(p.requires_grad for p in student.parameters())
    a, b = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(a[n], b[n]) and a[n].data_ptr() != b[n].data_ptr() for n in a)
    mine, theirs = student(images()), teacher(images())
    assert all(torch.equal(mine[n], theirs[n]) and not theirs[n].requires_grad for n in mine)


def test_teacher_moves_by_the_average_alone() -> None:
    student = small_network()
    teacher = make_teacher(student)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
        student.backbone.net.bn1.running_mean.add_(1)
    start = copy.deepcopy(teacher.state_dict())
    update_teacher(teacher, student, 0.9, DROP)
    assert all(torch.equal(now, start[n]) for n, now in teacher.state_dict().items())
    update_teacher(teacher, student, 0.9, KEEP)
    buffers = dict(teacher.named_buffers())
    for name, now in teacher.state_dict().items():
        expected = start[name] if name in buffers else 0.9 * start[name] + 0.1 * student.state_dict()[name]
        torch.testing.assert_close(now, expected, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet19"}, "write one of .*resnet18.*timm:NAME"),
        ({"backbone": "vit_b_16"}, "write one of .*resnet18"),
        ({"strides": (64,)}, "model.strides has 64; resnet18 has feature levels of strides 4, 8, 16, 32"),
        ({"strides": (2, 8)}, "strides 4, 8, 16, 32"),
    ],
)
def test_what_does_not_exist_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_network(**changes)


@pytest.mark.parametrize("name", ["timm:no_such_model", "timm:"])
def test_unknown_timm_models_are_refused(name: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra timm)")
    with pytest.raises(ConfigError, match="timm cannot build"):
        build_backbone(name)
