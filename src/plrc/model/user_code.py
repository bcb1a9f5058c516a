"""Functions of the user's own code, named `package.module:function` or `path/to/file.py:function`, and their backbones.

Such code is imported in this module only, and only under a name that the user gave in this call: as an option, as an
argument, or in a configuration that the user starts or resumes. Names that merely stand in a weights file or checkpoint
are shown and never imported.

Contract of a backbone: the function takes no arguments and returns a torch.nn.Module with random float32 weights. Its
forward takes images [B, 3, H, W] and returns feature maps [B, C, H / s, W / s], one for each stride s, either as a
dictionary {s: map} or, where the module has an attribute `strides` such as (4, 8, 16, 32), as a list, tuple or
dictionary in that order. It must take every H and W that the coarsest stride divides; other sizes may round up or down.
With `data.channels` N it may take [B, N, H, W]; the first convolution of a network for three channels is inflated.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from plrc.errors import ConfigError
from plrc.model.stem import inflate_stem
from plrc.pixels import RGB_CHANNELS
from plrc.text import nearest

HOW = "write package.module:function or path/to/file.py:function"
CONTRACT = "return {stride: features}, or set `strides` on the module and return the feature maps in that order"
ANY_ERROR = (Exception, SystemExit)  # an exit in the user's code would end plrc with that code's status
TEST_SIZE = (128, 192)  # height and width in pixels; not square, so that swapped sides are noticed


def is_user_code(name: str) -> bool:
    """Whether the name of a backbone names code of the user's own."""
    return ":" in name and not name.startswith(("timm:", "transformers:"))


def trusted_backbone(stored: str, named: str, how: str) -> str:
    """The backbone to build for a run or file that stores its name.

    A run folder may come from somebody else, so code that it names is imported only if the user names it in this call,
    too. What the user names may differ from it, such as a file that has moved: the tensors decide whether it is the
    same network. The same holds for transformers:FOLDER, whose stored name is used where the user names none.

    Args:
        stored: The name in the run or file.
        named: The name that the user gave in this call; empty for none.
        how: How the user can name it, a template for `str.format` such as "--backbone {}".

    Returns:
        The name to build from.

    Raises:
        ConfigError: The stored name is code, and the user did not name code in this call.
    """
    if not is_user_code(stored):
        is_folder = stored.startswith("transformers:")
        return named if is_folder and named.startswith("transformers:") else stored
    if not named:
        raise ConfigError(
            f"this backbone is a network of user code ({stored}), which is imported only if you name it; if you trust "
            f"it, add {how.format(stored)}"
        )
    if not is_user_code(named):
        raise ConfigError(f"this backbone is a network of user code ({stored}), not a {named}")
    return named


def call_function(name: str) -> Any:
    """Import and call a function of the user's own.

    Args:
        name: package.module:function or path/to/file.py:function; the function takes no arguments.

    Returns:
        What the function returns.

    Raises:
        ConfigError: There is no such function, or importing or calling it raised an error.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"{name!r} names no function; {HOW}")
    with _importable_neighbors(place):
        function = _function(_module(place), place, attribute)
        try:
            return function()
        except ANY_ERROR as error:
            raise ConfigError(f"{name} raised {describe_error(error)}") from error


def backbone_from_function(name: str, in_channels: int = RGB_CHANNELS) -> tuple[nn.Module, dict[int, int]]:
    """Build a backbone with a function of the user's own and check it against the contract of this module.

    Args:
        name: package.module:function or path/to/file.py:function.
        in_channels: Channels of the images. The first convolution of a network for RGB is inflated to another number.

    Returns:
        The network, and {stride: channels} from fine to coarse.

    Raises:
        ConfigError: The function fails, or the network breaks the contract.
    """
    net = call_function(name)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name} returned a {type(net).__name__}; return a torch.nn.Module that gives features")
    other_dtypes = {str(parameter.dtype) for parameter in net.parameters()} - {"torch.float32"}
    if other_dtypes:
        raise ConfigError(
            f"{name} has weights of {', '.join(sorted(other_dtypes))}; return float32, optim.precision does the rest"
        )
    if in_channels != RGB_CHANNELS:
        inflate_stem(net, in_channels, name)
    training = net.training
    try:
        with torch.no_grad():
            output = net.eval()(torch.zeros(1, in_channels, *TEST_SIZE))
    except Exception as error:
        raise ConfigError(
            f"the network of {name} does not take an image [1, {in_channels}, {TEST_SIZE[0]}, {TEST_SIZE[1]}]: "
            f"its forward raised {describe_error(error)}"
        ) from error
    net.train(training)
    levels = features_by_stride(net, output)
    if not levels:
        raise ConfigError(f"the network of {name} gives {_describe_value(output)}; {CONTRACT}")
    for stride, features in levels.items():
        _check_level(name, stride, features)
    return net, {stride: features.shape[1] for stride, features in levels.items()}


def features_by_stride(net: nn.Module, output: Any) -> dict[int, Any]:
    """What a network returned, as {stride: features} from fine to coarse; empty if the strides are not known.

    Args:
        net: The network, whose attribute `strides` may give the strides.
        output: What its forward returned.
    """
    if isinstance(output, Mapping) and output and all(type(key) is int for key in output):
        return {stride: output[stride] for stride in sorted(output)}
    strides = getattr(net, "strides", None)
    maps = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(strides, Sequence) or not isinstance(maps, (list, tuple)) or len(maps) != len(strides):
        return {}
    levels = dict(zip(map(int, strides), maps, strict=True))
    return {stride: levels[stride] for stride in sorted(levels)}


def refuse_frozen(net: nn.Module, name: str) -> None:
    """Check that pre-training can train a network well.

    Raises:
        ConfigError: No parameter takes a gradient, or a BatchNorm is frozen.
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ConfigError(f"no parameter of {name} takes a gradient; return the network unfrozen")
    for place, module in net.named_modules():
        if "FrozenBatchNorm" in type(module).__name__:
            raise ConfigError(
                f"{name} has frozen BatchNorm ({place}), which normalizes nothing in a network with random weights; "
                "return it with nn.BatchNorm2d, which has the same tensors, and freeze it in the detector"
            )


def describe_error(error: BaseException) -> str:
    """An exception in a single line: its class, its message, and the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _check_level(name: str, stride: int, features: Any) -> None:
    if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != 1:
        raise ConfigError(
            f"level {stride} of {name} is {_describe_value(features)}; return feature maps [B, C, H / s, W / s]"
        )
    height, width = features.shape[2:]
    expected = (0, 0)
    if stride > 0:
        expected = (-(-TEST_SIZE[0] // stride), -(-TEST_SIZE[1] // stride))
    if (height, width) != expected:
        raise ConfigError(
            f"level {stride} of {name} has {height} x {width} positions for an image of {TEST_SIZE[0]} x "
            f"{TEST_SIZE[1]} pixels instead of {expected[0]} x {expected[1]}: its stride is about "
            f"{TEST_SIZE[0] / max(height, 1):.3g}"
        )


def _describe_value(value: Any) -> str:
    """What a function or network returned, for an error's sentence."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _function(module: ModuleType, place: str, attribute: str) -> Callable[[], Any]:
    function = getattr(module, attribute, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    hint = f"; did you mean {place}:{nearest(attribute, names)}?" if names else ""
    raise ConfigError(f"{place} has no function {attribute}{hint}")


def _module(place: str) -> ModuleType:
    return _module_of_file(place) if place.endswith(".py") else _module_of_package(place)


def _module_of_package(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ANY_ERROR as error:
        # a module inside the package that is missing is an error of that code
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name or place}."):
            file = f"{place.replace('.', '/')}.py"
            hint = f"write {file}:..." if Path(file).is_file() else "a file is named as path/to/file.py:function"
            raise ConfigError(f"cannot import {place}: it is not installed here; {hint}") from error
        raise ConfigError(f"importing {place} raised {describe_error(error)}") from error


def _module_of_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {place}; {HOW}")
    key = f"plrc own code {path}"
    if key in sys.modules:  # imported only once, like any module, so that its classes stay the same
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except ANY_ERROR as error:
        del sys.modules[key]
        raise ConfigError(f"importing {place} raised {describe_error(error)}") from error
    return module


@contextlib.contextmanager
def _importable_neighbors(place: str) -> Iterator[None]:
    """Let a file import the other files of its folder, as under `python file.py`."""
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
