"""Weight files: the right prefix is found, everything that does not fit is refused, and nothing is half loaded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from plrc.errors import PlrcError
from plrc.model.backbone import Backbone, build_backbone
from plrc.model.prefixes import find_prefix
from plrc.model.weights import Weights, load_into, read_weights

State = dict[str, Tensor]


def backbone(seed: int) -> Backbone:
    torch.manual_seed(seed)
    return build_backbone("resnet18")


@pytest.fixture(scope="module")
def state() -> State:
    return backbone(1).net.state_dict()


@pytest.fixture(scope="module")
def start() -> Backbone:
    return backbone(2)


@pytest.fixture
def target(start: Backbone) -> Backbone:
    return copy.deepcopy(start)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def equal(net: Backbone, state: State) -> bool:
    now = net.net.state_dict()
    return all(torch.equal(now[name], tensor) for name, tensor in state.items())


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "backbone.net.",
        "backbone.body.",
        "module.encoder_q.",
        "base_encoder.",
        "model.net.x.",
    ],
)
def test_any_prefix_is_found_and_stripped(prefix: str, state: State, target: Backbone, tmp_path: Path) -> None:
    report = load_into(target, read_weights(save(tmp_path / "w.pt", prefixed(prefix, state))))
    assert equal(target, state)
    assert report.prefix == prefix
    assert report.matched == tuple(state)
    assert report.complete
    assert report.ignored == ()


@pytest.mark.parametrize("outer", ["state_dict", "model", "student", "backbone"])
def test_a_nested_state_is_found(outer: str, state: State, target: Backbone, tmp_path: Path) -> None:
    content = {outer: prefixed("module.", state), "epoch": 3, "optimizer": {"state": {0: {"avg": torch.zeros(2)}}}}
    weights = read_weights(save(tmp_path / "w.pt", content))
    report = load_into(target, weights)
    assert equal(target, state)
    assert report.prefix == f"{outer}.module."
    assert report.ignored == ("optimizer.state.0.avg",)
    assert weights.metadata == {"epoch": 3}


def test_safetensors_are_read_with_their_metadata(state: State, target: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "no_known_ending.bin"
    safetensors.torch.save_file(state, path, {"backbone": "resnet18"})
    weights = read_weights(path)
    load_into(target, weights)
    assert equal(target, state)
    assert weights.metadata == {"backbone": "resnet18"}


@pytest.mark.parametrize(
    ("leader", "follower"),
    [("student.backbone.net.", "teacher.backbone.net."), ("encoder_q.", "encoder_k."), ("model.", "model_ema.")],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_trained_network_goes_before_its_averaged_copy(
    leader: str, follower: str, order: int, state: State, target: Backbone, start: Backbone
) -> None:
    both = [prefixed(leader, state), prefixed(follower, start.net.state_dict())][::order]
    report = load_into(target, Weights(both[0] | both[1], "memory", {}))
    assert report.prefix == leader
    assert equal(target, state)


def test_the_prefix_is_the_one_with_the_most_names(state: State) -> None:
    part = dict(list(state.items())[:50])
    names = [*prefixed("first.", part), *prefixed("teacher.", state)]
    assert find_prefix(names, state) == "teacher."
    assert find_prefix(["a.b", "c"], state) == ""


@pytest.mark.parametrize("name", ["fc.weight", "classifier.bias", "head.0.weight", "roi_heads.box_head.fc6.weight"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_what_lies_outside_the_backbone_is_left_aside(name: str, prefix: str, state: State, target: Backbone) -> None:
    content = prefixed(prefix, state) | {prefix + name: torch.ones(3), "elsewhere.weight": torch.ones(2)}
    report = load_into(target, Weights(content, "memory", {}))
    assert report.ignored == (prefix + name, "elsewhere.weight")
    assert report.complete
    assert equal(target, state)


def test_old_files_without_step_counters_are_complete(state: State, target: Backbone) -> None:
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    assert load_into(target, Weights(old, "memory", {})).complete
    assert equal(target, old)


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda s: without(s, "layer3.0.bn1.bias"), "missing           1  layer3.0.bn1.bias"),
        (
            lambda s: without(s, "conv1.weight") | {"conv_1.weight": s["conv1.weight"]},
            "ignored           1  conv_1.weight",
        ),
        (
            lambda s: without(s, "layer1.0.conv1.weight") | {"layer1.0.conv_1.weight": s["layer1.0.conv1.weight"]},
            "unexpected        1  layer1.0.conv_1.weight",
        ),
        (
            lambda s: s | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
            "conv1.weight [64, 1, 7, 7] instead of [64, 3, 7, 7]",
        ),
        (lambda s: s | {"layer4.2.conv1.weight": torch.zeros(2)}, "unexpected        1  layer4.2.conv1.weight"),
    ],
    ids=["missing", "renamed module", "renamed inside", "shape", "larger network"],
)
def test_what_does_not_fit_is_refused_with_a_table(
    fault: Callable[[State], State], told: str, state: State, target: Backbone, start: Backbone
) -> None:
    with pytest.raises(PlrcError) as caught:
        load_into(target, Weights(fault(dict(state)), "some.pt", {}))
    sentence, *table = str(caught.value).split("\n")
    assert sentence.startswith("some.pt does not fit resnet18")
    assert told in "\n".join(table)
    assert equal(target, start.net.state_dict())


def test_a_larger_network_of_the_same_family_is_refused(target: Backbone, start: Backbone) -> None:
    larger = build_backbone("resnet34").net.state_dict()
    with pytest.raises(PlrcError, match=r"0 tensors missing, 0 of another shape, \d+ unexpected"):
        load_into(target, Weights(larger, "resnet34.pt", {}))
    assert equal(target, start.net.state_dict())


def test_a_partial_load_takes_what_fits(state: State, target: Backbone, start: Backbone) -> None:
    content = without(state, "layer3.0.bn1.bias") | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    report = load_into(target, Weights(content, "memory", {}), allow_partial=True)
    fitting = without(without(state, "layer3.0.bn1.bias"), "conv1.weight")
    assert report.matched == tuple(fitting)
    assert report.missing == ("layer3.0.bn1.bias",)
    assert len(report.shape_mismatch) == 1
    assert equal(target, fitting)
    assert torch.equal(target.net.state_dict()["conv1.weight"], start.net.state_dict()["conv1.weight"])


def test_even_a_partial_load_must_fit_somewhere(target: Backbone) -> None:
    with pytest.raises(PlrcError, match="does not fit resnet18"):
        load_into(target, Weights({"0.weight": torch.zeros(3)}, "memory", {}), allow_partial=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, state: State, target: Backbone, start: Backbone) -> None:
    bad = state["bn1.weight"].clone()
    bad[3] = value
    with pytest.raises(PlrcError, match=r"memory holds values that are not finite in bn1\.weight"):
        load_into(target, Weights(state | {"bn1.weight": bad}, "memory", {}))
    assert equal(target, start.net.state_dict())


@pytest.mark.parametrize("name", ["half.safetensors", "half.pt"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened(
    kind: torch.dtype, name: str, state: State, target: Backbone, tmp_path: Path
) -> None:
    half = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    file = tmp_path / name
    if file.suffix == ".pt":
        save(file, {"model": half})
    else:
        safetensors.torch.save_file(half, file)
    report = load_into(target, read_weights(file))
    assert report.warnings == (f"the file holds numbers in {str(kind)[6:]}, which are converted to float32",)
    assert target.net.state_dict()["conv1.weight"].dtype == torch.float32
    assert equal(target, {name: tensor.to(state[name].dtype) for name, tensor in half.items()})


def test_a_copy_that_did_not_take_is_noticed(state: State, target: Backbone) -> None:
    """A tied tensor: two names share one memory, so the second copy overwrites the first."""
    block = target.net.get_submodule("layer1.0")
    block.get_submodule("conv1").weight = block.get_submodule("conv2").weight
    with pytest.raises(PlrcError, match=r"after loading memory .* differ from it: layer1\.0\.conv1\.weight"):
        load_into(target, Weights(state, "memory", {}))


def test_the_table_shortens_long_rows(state: State, target: Backbone) -> None:
    table = load_into(target, Weights(prefixed("m.", state), "memory", {})).table()
    assert "prefix in the file: m." in table
    assert f"matched {len(state):>11}  conv1.weight, bn1.weight" in table
    assert f"and {len(state) - 12} more" in table


class Code:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (exec, ("raise SystemExit('the file ran code')",))


def test_a_file_with_code_is_refused_and_not_run(state: State, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"state_dict": state, "args": Code()})
    with pytest.raises(PlrcError, match="Python objects in addition to tensors, which plrc does not run"):
        read_weights(path)


def test_a_bare_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(Code(), protocol=2))
    with pytest.raises(PlrcError, match="Python objects in addition to tensors, which plrc does not run"):
        read_weights(path)


def test_a_truncated_safetensors_file_is_named(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save(state)[:100_000])
    with pytest.raises(PlrcError, match=r"w\.safetensors is a damaged safetensors file"):
        read_weights(path)


def test_a_truncated_torch_file_is_named(state: State, tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", state)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(PlrcError, match=r"w\.pt cannot be read \(damaged"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is a text\n", b"\xff\xd8\xff\xe0" + b"1" * 100, b"PK\x03\x04"])
def test_a_file_of_another_kind_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(PlrcError, match=r"photo\.jpg .*not a weights file"):
        read_weights(path)


def test_an_absent_file_a_folder_and_a_file_without_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(PlrcError, match=r"absent\.pt: No such file"):
        read_weights(tmp_path / "absent.pt")
    with pytest.raises(PlrcError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(PlrcError, match="holds no tensors"):
        read_weights(save(tmp_path / "w.pt", {"epoch": 3}))
    with pytest.raises(PlrcError, match="holds a Tensor instead of a dictionary"):
        read_weights(save(tmp_path / "w.pt", torch.zeros(3)))
