"""One training step of lightly's MoCo v2 and DenseCL, built from its parts, compared with its own network passes.

lightly (MIT; `pip install "lightly>=1.6"`) provides the projection heads, losses with a memory bank, momentum update,
matching of positions and transforms, combined as its documentation does (https://docs.lightly.ai/examples/moco.html and
densecl.html), but with the papers' widths (2048, 2048, 128) and 65,536 keys. Backbone, memory format, precision and
optimizer settings are those of our step.

Both methods have two views: the query goes through the student, the key through the teacher. Their network passes are
these two with heads, and the optimizer step. BatchNorm sees the whole batch, as in lightly's examples.

Shapes: B images, S pixels per side, C channels, h x w the feature grid, D projection width.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.photographs import photograph
from plrc.config import Config
from plrc.errors import MissingPackageError
from plrc.model import build_backbone

NUM_KEYS = 65536
HIDDEN = 2048
DIM = 128
TEMPERATURE = 0.2


def peer_variants(
    config: Config, query: Tensor, key: Tensor, autocast: Callable[[], contextlib.AbstractContextManager[object]]
) -> dict[str, Callable[[], object]]:
    """Return the variants to time, by name.

    NAME is a whole step on finished views query and key [B, 3, S, S]; "NAME: network passes" are its passes alone;
    "lightly transforms" turns decoded photographs into two views each, for as many images.

    Raises:
        MissingPackageError: lightly is not installed.
    """
    try:
        from lightly.transforms.moco_transform import MoCoV2Transform
    except ImportError as error:
        raise MissingPackageError("steps of peers", "lightly") from error
    variants: dict[str, Callable[[], object]] = {}
    for name, dense in (("lightly MoCo v2", False), ("lightly DenseCL", True)):
        peer = Peer(config, LightlyMethod(config, dense), query, key, autocast)
        variants |= {name: peer.step, f"{name}: network passes": peer.passes}
    transform = MoCoV2Transform(input_size=config.views.size)
    images = [Image.open(io.BytesIO(photograph(i))).convert("RGB") for i in range(min(len(query), 8))]
    variants["lightly transforms"] = lambda: [transform(images[i % len(images)]) for i in range(len(query))]
    return variants


class LightlyMethod(nn.Module):
    """Student, teacher and losses of MoCo v2, or of DenseCL if `dense`.

    Args:
        config: The backbone and the memory format.
        dense: Whether to build DenseCL.
        num_keys: Length of the memory bank of image keys.
        num_dense_keys: Length of the memory bank of dense keys.
        hidden: Hidden width of the heads.
    """

    def __init__(
        self,
        config: Config,
        dense: bool,
        num_keys: int = NUM_KEYS,
        num_dense_keys: int = NUM_KEYS,
        hidden: int = HIDDEN,
    ) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models import utils

        super().__init__()
        self.utils = utils
        memory_format = torch.channels_last if config.optim.channels_last else torch.contiguous_format
        student = _Encoder(config.model.backbone, dense, hidden)
        self.student = student.to(memory_format=memory_format)
        self.teacher = copy.deepcopy(self.student)
        utils.deactivate_requires_grad(self.teacher)
        losses = {"image": NTXentLoss(TEMPERATURE, (num_keys, DIM))}
        if dense:
            losses["dense"] = NTXentLoss(TEMPERATURE, (num_dense_keys, DIM))
        self.losses = nn.ModuleDict(losses)

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student."""
        self.utils.update_momentum(self.student, self.teacher, momentum)

    def loss(self, query_views: Tensor, key_views: Tensor) -> Tensor:
        """Return the loss of two views [B, 3, S, S] of each image; the keys enter the memory banks."""
        query = self.student(query_views)
        with torch.no_grad():
            key = self.teacher(key_views)
        loss: Tensor = self.losses["image"](query["image"], key["image"])
        if "dense" in query:
            matched = self.utils.select_most_similar(query["features"], key["features"], key["dense"])
            dense = self.losses["dense"](query["dense"].flatten(end_dim=1), matched.flatten(end_dim=1))
            loss = 0.5 * loss + 0.5 * dense
        return loss


class Peer:
    """A method with its optimizer, whose steps have learning rate 0, on given views query and key [B, 3, S, S]."""

    def __init__(
        self,
        config: Config,
        method: LightlyMethod,
        query: Tensor,
        key: Tensor,
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
    ) -> None:
        self.method = method.to(query.device)
        self.query = query
        self.key = key
        self.autocast = autocast
        self.momentum = config.optim.teacher_momentum
        self.optimizer = torch.optim.SGD(
            method.student.parameters(), lr=0.0, momentum=config.optim.momentum, weight_decay=config.optim.weight_decay
        )

    def step(self) -> None:
        self.method.update_teacher(self.momentum)
        with self.autocast():
            loss = self.method.loss(self.query, self.key)
        self._update(loss)

    def passes(self) -> None:
        with self.autocast():
            with torch.no_grad():
                self.method.teacher(self.key)
            query = self.method.student(self.query)
        self._update(torch.stack([query[head].mean() for head in ("image", "dense") if head in query]).sum())

    def _update(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class _Encoder(nn.Module):
    """Map images [B, 3, S, S] to "image" [B, D]; DenseCL also to "features" [B, h w, C] and "dense" [B, h w, D]."""

    def __init__(self, name: str, dense: bool, hidden: int) -> None:
        from lightly.models.modules import DenseCLProjectionHead, MoCoProjectionHead

        super().__init__()
        self.backbone = build_backbone(name)
        self.stride, channels = list(self.backbone.channels.items())[-1]
        head: Any = DenseCLProjectionHead if dense else MoCoProjectionHead
        self.head = head(channels, hidden, DIM)
        self.dense_head = head(channels, hidden, DIM) if dense else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        grid = self.backbone(images)[self.stride]
        out = {"image": self.head(grid.mean(dim=(2, 3)))}
        if self.dense_head is not None:
            features = grid.flatten(2).transpose(1, 2)
            out |= {"features": features, "dense": self.dense_head(features)}
        return out
