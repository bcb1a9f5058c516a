"""The first convolution of a network for another number of channels than three.

Shapes: C channels of the images, [out, C, k, k] the weights of the convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plrc.errors import ConfigError
from plrc.pixels import RGB_CHANNELS


def inflate(weight: Tensor, channels: int) -> Tensor:
    """Turn weights for RGB into weights for another number of channels.

    The three channels are repeated in turn and scaled by 3 / C, so that responses keep their scale. A single channel
    gets their sum. (timm does the same.)

    Args:
        weight: [out, 3, k, k].
        channels: C.

    Returns:
        [out, C, k, k].
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-channels // RGB_CHANNELS)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (RGB_CHANNELS / channels)


def is_inflatable(stored: Tensor, target: Tensor, channels: int) -> bool:
    """Whether `stored` is the weight of a first convolution for RGB, and `target` that for `channels` others."""
    if channels == RGB_CHANNELS or stored.ndim != 4 or stored.shape[1] != RGB_CHANNELS:
        return False
    return target.shape == (len(stored), channels, *stored.shape[2:])


def fitted(stored: Tensor, target: Tensor, channels: int) -> Tensor:
    """The weight as a network with this `target` takes it: inflated to `channels` if it must be, else as it is."""
    return inflate(stored, channels) if is_inflatable(stored, target, channels) else stored


def inflate_stem(net: nn.Module, channels: int, name: str) -> None:
    """Let a network take images of so many channels, in place. A network that takes them already is left as it is.

    Args:
        net: The network.
        channels: C.
        name: Name of the network, for the message.

    Raises:
        ConfigError: Its first convolution takes neither RGB nor so many channels.
    """
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    first = convolutions[0].in_channels if convolutions else 0
    if first == channels:
        return
    if first != RGB_CHANNELS:
        what = f"takes {first} channels" if first else "has none"
        raise ConfigError(
            f"data.channels is {channels}, but the first convolution of {name} {what}; return a network that takes "
            f"{channels} channels"
        )
    for convolution in convolutions:  # some stems have several branches that see the image
        if convolution.in_channels == RGB_CHANNELS and convolution.groups == 1:
            convolution.in_channels = channels
            with torch.no_grad():
                convolution.weight = nn.Parameter(
                    inflate(convolution.weight, channels), requires_grad=convolution.weight.requires_grad
                )
