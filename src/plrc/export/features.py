"""`plrc.load_backbone`: a trained backbone for Python users: images in, dense features by stride out.

Layer 5: imports data, model, engine's checkpoints and this folder.

Shapes: B images, H x W pixels, C channels, s a stride.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc.config import Config
from plrc.data.photometric import MEAN, STD
from plrc.engine.checkpoint import checkpoint_of
from plrc.errors import ConfigError, PlrcError
from plrc.model.backbone import RESNETS, Backbone, build_backbone
from plrc.model.user_code import trusted_backbone
from plrc.model.weights import load_into, read_weights, stored_code, stored_name

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BEYOND = 0.5  # how far an image may leave [0, 1] (sharp resizing overshoots a little) before it is taken for normalized


class DenseFeatures(nn.Module):
    """images [B, 3, H, W] -> {s: features [B, channels[s], ceil(H / s), ceil(W / s)]}, in eval mode, of any size.

    As built, images are RGB, float and already normalized with ImageNet's mean and standard deviation, as backbones of
    detectors get them. With `normalize` they are RGB as decoded, uint8 in 0..255 or float in 0..1, and that is applied
    inside.

    torchvision's ResNets take any size as it is: the features are those of the plain network, bit for bit. Others may
    round down and lose the border, so for them images are padded below and on the right with zeros after normalization
    (the mean color) until the coarsest stride divides both sides, and positions wholly in the padding are cut off.
    Position (i, j) of level s looks at the image around row s * i, column s * j. With layer4_stride 1 the level called
    32 has the positions of level 16.

    Features have the dtype of the weights, which is what `load_backbone(dtype=...)` asked for.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, normalize: bool = False, channels_last: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = backbone.channels
        self.normalize = normalize
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, deepest: int | None = None) -> dict[int, Tensor]:
        """`deepest`: the largest stride that is wanted; a torchvision ResNet then skips the layers after it.

        Raises PlrcError for images of another shape or dtype, or outside their range.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise PlrcError(f"images have the shape {list(images.shape)}; give a batch [B, 3, H, W]")
        images = self._normalised(images)
        height, width = images.shape[2:]
        coarsest = 1 if self.backbone.name in RESNETS else max(self.channels)
        padded = F.pad(images, (0, -width % coarsest, 0, -height % coarsest))
        found = self.backbone(padded.contiguous(memory_format=self.memory_format), deepest)
        out = {}
        for stride, features in found.items():
            out[stride] = features[..., : -(-height // stride), : -(-width // stride)] if coarsest > 1 else features
        return out

    def _normalised(self, images: Tensor) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        whole = images.dtype == torch.uint8
        if not (whole or images.is_floating_point()) or (whole and not self.normalize):
            wanted = (
                "uint8 in 0..255 or float in 0..1"
                if self.normalize
                else "float images, already normalized, or say normalize=True"
            )
            raise PlrcError(f"images are of {str(images.dtype).removeprefix('torch.')}; give {wanted}")
        if not self.normalize:
            return images.to(dtype)
        if not whole and not torch.compiler.is_compiling():
            low, high = (float(value) for value in images.aminmax())
            if not (low >= -BEYOND and high <= 1 + BEYOND):
                raise PlrcError(
                    f"images range from {low:.3g} to {high:.3g}; give float in 0..1 or uint8 in 0..255, or leave "
                    "normalize=True out where they are normalized already"
                )
        pixels = images.float() / 255 if whole else images.float()
        return ((pixels - self.mean.float()) / self.std.float()).to(dtype)


def load_backbone(
    path: str | Path,
    layer4_stride: int = 2,
    backbone: str = "",
    *,
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
) -> DenseFeatures:
    """A trained backbone in eval mode: RGB images [B, 3, H, W] -> {s: features [B, C, ceil(H / s), ceil(W / s)]}.

    Images are normalized with ImageNet's mean and standard deviation, or as decoded with `normalize=True`.
    `path`: a run folder (its newest checkpoint), a checkpoint, or an exported file of any target but ONNX. What goes
    in, and how images of any size are padded, `DenseFeatures` says. Weights, and so features, are of `dtype`: float32,
    float16 or bfloat16. `channels_last` lets the convolutions of a GPU, or bfloat16 on a CPU, run faster; the features
    stay [B, C, h, w].

    A file that does not say which backbone it holds needs its name in `backbone` (resnet50, timm:NAME, ...). So does a
    backbone of somebody's own code, even if the file names it: code is imported only where you name it. With
    `layer4_stride=1` (torchvision ResNets) the level called 32 has the positions of level 16. Raises PlrcError where
    the weights do not fit.
    """
    if dtype not in DTYPES:
        names = ", ".join(str(known) for known in DTYPES)
        raise ConfigError(f"dtype is {dtype}; write one of {names}")
    path = Path(path)
    weights = read_weights(checkpoint_of(path))
    stored, code = stored_name(weights.metadata), stored_code(weights.metadata)
    name = trusted_backbone(code, backbone, "backbone={!r}") if code else stored or backbone
    if not name:
        raise PlrcError(f"{path} does not say which backbone it holds; name it, such as backbone='resnet50'")
    if backbone not in ("", name):
        raise PlrcError(f"{path} holds a {name}, not a {backbone}; leave `backbone` out")
    model = Config().with_values({"model.backbone": name, "model.layer4_stride": layer4_stride}).model
    net = build_backbone(model.backbone, model.layer4_stride)
    load_into(net, weights)
    features = DenseFeatures(net.eval(), normalize, channels_last).eval()
    features.to(device=device, dtype=dtype, memory_format=features.memory_format)  # type: ignore[call-overload]
    return features
