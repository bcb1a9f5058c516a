"""The user's own code: a function named `package.module:function` or `path/to/file.py:function`, and backbones from it.

Layer 2: imports config and settings. Code is imported here and nowhere else, and only under a name that the user gave
in this call: as an option, as an argument, or in a configuration that the user starts or resumes. Names that merely
stand in somebody's weights file or checkpoint are shown, never followed.

Contract of a backbone: the function takes no arguments and returns a torch.nn.Module with random float32 weights. Its
forward takes images [B, 3, H, W] and returns feature maps [B, C, H / s, W / s], one for each stride s, either as a
dictionary {s: map} or, where the module has an attribute `strides` such as (4, 8, 16, 32), as a list, tuple or
dictionary in that order. It must take every H and W that the coarsest stride divides; other sizes may round up or down.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from plrc.errors import ConfigError
from plrc.text import nearest

HOW = "write package.module:function or path/to/file.py:function"
CONTRACT = "return {stride: features}, or set `strides` on the module and return the feature maps in that order"
ANYTHING = (Exception, SystemExit)  # that code of the user's own may raise; its exit would end plrc with its status
TEST_SIZE = (128, 192)  # pixels; not square, so that swapped sides are found


def is_user_code(name: str) -> bool:
    """Whether a backbone's name names code of the user's own."""
    return ":" in name and not name.startswith("timm:")


def trusted_backbone(stored: str, named: str, how: str) -> str:
    """The backbone to build for a run that stored its name; code is taken only from what the user names in this call.

    A run folder may be somebody else's, so code that it names is shown and not followed: ConfigError. What the user
    names may differ from it, such as a file that has moved: whether it is the same network, its tensors decide.
    """
    if not is_user_code(stored):
        return stored
    if not named:
        raise ConfigError(
            f"this backbone is a network of somebody's own code ({stored}), which is imported only where you name it; "
            f"if you trust it, add {how.format(stored)}"
        )
    if not is_user_code(named):
        raise ConfigError(f"this backbone is a network of somebody's own code ({stored}), not a {named}")
    return named


def call_function(name: str) -> Any:
    """What the function named `name` returns. Raises ConfigError, in one sentence, for whatever goes wrong in it."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"{name!r} names no function; {HOW}")
    with _beside(place):
        module = _module(place)
        function = getattr(module, attribute, None)
        if not callable(function):
            found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            near = f"; did you mean {place}:{nearest(attribute, found)}?" if found else ""
            raise ConfigError(f"{place} has no function {attribute}{near}")
        try:
            return function()
        except ANYTHING as error:
            raise ConfigError(f"{name} raised {describe_error(error)}") from error


def backbone_from_function(name: str) -> tuple[nn.Module, dict[int, int]]:
    """(network, {stride: channels} from fine to coarse) of a function; ConfigError where it breaks the contract."""
    net = call_function(name)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name} returned a {type(net).__name__}; return a torch.nn.Module that gives features")
    kinds = {str(p.dtype) for p in net.parameters()} - {"torch.float32"}
    if kinds:
        raise ConfigError(
            f"{name} has weights of {', '.join(sorted(kinds))}; return float32, optim.precision does the rest"
        )
    training = net.training
    try:
        with torch.no_grad():
            found = net.eval()(torch.zeros(1, 3, *TEST_SIZE))
    except Exception as error:
        size = f"an image [1, 3, {TEST_SIZE[0]}, {TEST_SIZE[1]}]"
        raise ConfigError(
            f"the network of {name} does not take {size}: its forward raised {describe_error(error)}"
        ) from error
    net.train(training)
    levels = features_by_stride(net, found)
    if not levels:
        raise ConfigError(f"the network of {name} gives {_kind(found)}; {CONTRACT}")
    for stride, features in levels.items():
        _check_level(name, stride, features)
    return net, {stride: features.shape[1] for stride, features in levels.items()}


def features_by_stride(net: nn.Module, found: Any) -> dict[int, Any]:
    """What a network gave, as {stride: features} from fine to coarse; empty where it does not say the strides."""
    if isinstance(found, Mapping) and found and all(type(key) is int for key in found):
        return {stride: found[stride] for stride in sorted(found)}
    strides = getattr(net, "strides", None)
    maps = list(found.values()) if isinstance(found, Mapping) else found
    if not isinstance(strides, Sequence) or not isinstance(maps, (list, tuple)) or len(maps) != len(strides):
        return {}
    return dict(sorted(zip(map(int, strides), maps, strict=True), key=lambda level: level[0]))


def refuse_frozen(net: nn.Module, name: str) -> None:
    """Raise ConfigError for a network that pre-training could not train, or not train well."""
    if not any(p.requires_grad for p in net.parameters()):
        raise ConfigError(f"no parameter of {name} takes a gradient; return the network unfrozen")
    frozen = [where for where, module in net.named_modules() if "FrozenBatchNorm" in type(module).__name__]
    if frozen:
        raise ConfigError(
            f"{name} has frozen BatchNorm ({frozen[0]}), which normalises nothing in a network with random weights; "
            "return it with nn.BatchNorm2d, which has the same tensors, and freeze it in the detector"
        )


def describe_error(error: BaseException) -> str:
    """An exception in one line: its kind, what it says, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _check_level(name: str, stride: int, features: Any) -> None:
    if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != 1:
        raise ConfigError(f"level {stride} of {name} is {_kind(features)}; return feature maps [B, C, H / s, W / s]")
    sides = tuple(-(-side // stride) for side in TEST_SIZE) if stride > 0 else (0, 0)
    if tuple(features.shape[2:]) != sides:
        height, width = features.shape[2:]
        raise ConfigError(
            f"level {stride} of {name} has {height} x {width} positions for an image of {TEST_SIZE[0]} x "
            f"{TEST_SIZE[1]} pixels "
            f"instead of {sides[0]} x {sides[1]}: its stride is about {TEST_SIZE[0] / max(height, 1):.3g}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (list, tuple)) else "")


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or f"{place}.".startswith(f"{error.name}."):
                file = f"{place.replace('.', '/')}.py"
                hint = f"write {file}:..." if Path(file).is_file() else "a file is named as path/to/file.py:function"
                raise ConfigError(f"cannot import {place}: it is not installed here; {hint}") from error
            raise ConfigError(f"importing {place} raised {describe_error(error)}") from error
        except ANYTHING as error:
            raise ConfigError(f"importing {place} raised {describe_error(error)}") from error
    path = Path(place).resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {place}; {HOW}")
    key = f"plrc own code {path}"  # imported once, as any module: its classes stay the same ones
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None, "a .py file has a loader"
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ANYTHING as error:
            del sys.modules[key]
            raise ConfigError(f"importing {place} raised {describe_error(error)}") from error
    return sys.modules[key]


@contextlib.contextmanager
def _beside(place: str) -> Iterator[None]:
    """A file may import its neighbours, as under `python file.py`."""
    folder = str(Path(place).resolve().parent)
    if not place.endswith(".py") or folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
