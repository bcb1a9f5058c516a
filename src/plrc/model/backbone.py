"""Backbones: an image in, a dictionary {stride: feature map} out.

`Backbone.net` carries the tensor names of the library it came from (torchvision, timm, transformers, or the user's own
code), so that weights move between plrc and that library without renaming.

Shapes: B images, H x W pixels, C channels, s a stride. Images are [B, 3, H, W]; with `data.channels` N, [B, N, H, W].
"""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from plrc.errors import ConfigError
from plrc.model.stem import inflate_stem
from plrc.model.timm_networks import PREFIX, Reading, build_timm, read_features
from plrc.model.transformers_networks import PREFIX as DETECTOR_PREFIX
from plrc.model.transformers_networks import build_library_backbone, read_maps
from plrc.model.user_code import backbone_from_function, features_by_stride, is_user_code
from plrc.pixels import IMAGENET, RGB_CHANNELS

# "resne" is in the names of ResNet, Wide ResNet and ResNeXt.
RESNETS = tuple(name for name in torchvision.models.list_models(module=torchvision.models) if "resne" in name)


class ResNetLevels(nn.Module):
    """A torchvision ResNet without its classifier: [B, 3, H, W] -> four levels of strides 4, 8, 16, 32."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.conv1 = net.conv1
        self.bn1 = net.bn1
        self.relu = net.relu
        self.maxpool = net.maxpool
        self.layer1 = net.layer1
        self.layer2 = net.layer2
        self.layer3 = net.layer3
        self.layer4 = net.layer4

    def forward(self, images: Tensor, num_levels: int = 4) -> list[Tensor]:
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[:num_levels]:
            x = layer(x)
            features.append(x)
        return features


class Backbone(nn.Module):
    """Images [B, 3, H, W] -> {s: features [B, channels[s], ceil(H / s), ceil(W / s)]}.

    With `layer4_stride=1` the key of the last level is still 32, but its features have the size of those of stride 16.

    Attributes:
        name: Value of the setting `model.backbone` from which it was built.
        net: The network; its tensors have the names of its library.
        channels: {stride: channels}, from fine to coarse.
        multiple: Images whose sides are multiples of this always fit, such as the patch of a vision transformer;
            1 for torchvision's ResNets.
        in_channels: Channels of the images that it takes.
        fixed: Whether sides must be equal to `multiple`.
        reading: How a network of timm is read (`plrc.model.timm_networks`); empty for other networks.
        pixels: The statistics that images are normalized with. ImageNet's, unless who loads the weights sets others.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        channels: dict[int, int],
        multiple: int = 1,
        fixed: bool = False,
        reading: Reading | None = None,
        in_channels: int = RGB_CHANNELS,
    ) -> None:
        super().__init__()
        self.name = name
        self.net = net
        self.channels = channels
        self.multiple = multiple
        self.fixed = fixed
        self.reading = reading
        self.in_channels = in_channels
        self.pixels = IMAGENET

    def forward(self, images: Tensor, deepest: int | None = None) -> dict[int, Tensor]:
        """Compute the features of every level.

        Args:
            images: Normalized images [B, 3, H, W].
            deepest: The largest stride that is wanted; a torchvision ResNet then skips the layers after it.

        Returns:
            {s: features [B, channels[s], ceil(H / s), ceil(W / s)]}.
        """
        wanted = [stride for stride in self.channels if deepest is None or stride <= deepest]
        if self.reading is not None:
            features = read_features(self.net, self.reading, self.channels, images)
            return {stride: features[stride] for stride in wanted}
        if self.name.startswith(DETECTOR_PREFIX):
            features = read_maps(self.net, self.channels, images)
            return {stride: features[stride] for stride in wanted}
        if is_user_code(self.name):
            features = features_by_stride(self.net, self.net(images))
            return {stride: features[stride] for stride in wanted}
        return dict(zip(wanted, self.net(images, len(wanted)), strict=True))

    def fitting_side(self, side: int) -> int:
        """The smallest side, at least as large as `side`, of images that always fit."""
        return self.multiple if self.fixed else -(-side // self.multiple) * self.multiple

    def describe_sizes(self, side: int) -> str:
        """Which sizes of images fit near a side that does not, for an error's sentence."""
        if self.fixed:
            return f"which takes images of {self.multiple} x {self.multiple} only; write {self.multiple}"
        unit = "patch is" if self.reading == "tokens" else "sides must be multiples of"
        above = self.fitting_side(side + 1)
        below = above - self.multiple
        if below == side:  # it should fit, but does not
            below -= self.multiple
        sizes = f"{below} or {above}" if below > 0 else str(above)
        return f"whose {unit} {self.multiple}; write {sizes}"


def build_backbone(name: str, layer4_stride: int = 2, in_channels: int = RGB_CHANNELS) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: A torchvision ResNet, `timm:NAME` (a model with features_only, or a vision transformer),
            `transformers:FOLDER` (the backbone of the detector in a folder of save_pretrained), or a function of the
            user's own (FILE.py:FUNCTION or package.module:function), which is imported and called.
        layer4_stride: Stride of layer4 of a torchvision ResNet: 2 as usual, or 1.
        in_channels: Channels of the images. With another number than three, timm builds the first convolution for it;
            that of other networks is inflated from three channels (`stem.inflate`).

    Returns:
        The backbone in training mode.

    Raises:
        ConfigError: There is no such backbone, or it does not give one feature map per stride.
        MissingPackageError: timm or transformers is needed and not installed.
    """
    if is_user_code(name):
        user_net, user_channels = backbone_from_function(name, in_channels)
        return Backbone(name, user_net, user_channels, multiple=max(user_channels), in_channels=in_channels)
    if name.startswith(PREFIX):
        timm = build_timm(name, in_channels=in_channels)
        return Backbone(name, timm.net, timm.channels, timm.multiple, timm.fixed, timm.reading, in_channels)
    if name.startswith(DETECTOR_PREFIX):
        library = build_library_backbone(name, in_channels)
        return Backbone(name, library.net, library.channels, library.multiple, in_channels=in_channels)
    if name not in RESNETS:
        raise ConfigError(
            f"model.backbone is {name!r}; write one of {', '.join(RESNETS)}, timm:NAME for a model of timm, "
            "transformers:FOLDER for that of a detector of transformers, or FILE.py:FUNCTION for a network of your own"
        )
    build: Callable[..., ResNet] = torchvision.models.get_model_builder(name)
    net = ResNetLevels(build(weights=None))
    inflate_stem(net, in_channels, name)
    if layer4_stride == 1:
        # only the first block of a stage has stride 2: in one convolution and in its shortcut
        for module in net.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    channels = {
        4: _output_channels(net.layer1),
        8: _output_channels(net.layer2),
        16: _output_channels(net.layer3),
        32: _output_channels(net.layer4),
    }
    return Backbone(name, net, channels, in_channels=in_channels)


def _output_channels(layer: nn.Sequential) -> int:
    """Output channels of a stage of a ResNet: those of its last convolution that is not on a shortcut."""
    channels = 0
    for name, module in layer[-1].named_modules():
        if isinstance(module, nn.Conv2d) and "downsample" not in name:
            channels = int(module.out_channels)
    return channels
