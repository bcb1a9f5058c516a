"""One training step of another library's MoCo v2 and DenseCL, built from its parts, against its own network passes.

Layer 5: imports config, model, and the photographs of this folder. The library is lightly (MIT; extra `bench`): its
projection heads, losses with a memory bank, momentum update, matching of positions and transforms, put together as its
documentation does (https://docs.lightly.ai/examples/moco.html and densecl.html), but with the papers' widths (2048,
2048, 128) and 65,536 keys. Backbone, memory format, precision and optimiser's settings are those of our step.

Both methods have two views: query through the student, key through the teacher. Their passes are these two, with heads,
and the optimiser's step. BatchNorm sees the whole batch, as in the library's examples.
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
from plrc.errors import PlrcError
from plrc.model import build_backbone

KEYS, HIDDEN, DIM, TEMPERATURE = 65536, 2048, 128, 0.2


def peer_variants(
    config: Config, query: Tensor, key: Tensor, autocast: Callable[[], contextlib.AbstractContextManager[object]]
) -> dict[str, Callable[[], object]]:
    """Functions by name: NAME, a whole step on finished views query and key [B, 3, S, S], and "NAME: network passes".

    A further one is the transforms of both methods (the same ones): decoded photographs to two views each, for as many
    images. Raises PlrcError where lightly is not installed.
    """
    try:
        from lightly.transforms import MoCoV2Transform
    except ImportError as error:
        raise PlrcError("the comparison needs lightly; install it with: pip install 'plrc-pretrain[bench]'") from error
    variants: dict[str, Callable[[], object]] = {}
    for name, dense in (("lightly MoCo v2", False), ("lightly DenseCL", True)):
        peer = Peer(config, dense, query, key, autocast)
        variants |= {name: peer.step, f"{name}: network passes": peer.passes}
    transform = MoCoV2Transform(input_size=config.views.size)
    images = [Image.open(io.BytesIO(photograph(i))).convert("RGB") for i in range(min(len(query), 8))]
    variants["lightly transforms"] = lambda: [transform(images[i % len(images)]) for i in range(len(query))]
    return variants


class Peer(nn.Module):
    """MoCo v2, or DenseCL if `dense`: student, teacher, losses and optimiser."""

    def __init__(
        self,
        config: Config,
        dense: bool,
        query: Tensor,
        key: Tensor,
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
    ) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models import utils

        super().__init__()
        self.query, self.key, self.autocast, self.momentum = query, key, autocast, config.optim.teacher_momentum
        self.utils = utils
        memory_format = torch.channels_last if config.optim.channels_last else torch.contiguous_format
        student = _Encoder(config.model.backbone, dense)
        self.student: _Encoder = student.to(query.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.teacher = copy.deepcopy(self.student)
        utils.deactivate_requires_grad(self.teacher)
        losses = {"image": NTXentLoss(TEMPERATURE, (KEYS, DIM))} | (
            {"dense": NTXentLoss(TEMPERATURE, (KEYS, DIM))} if dense else {}
        )
        self.losses = nn.ModuleDict(losses).to(query.device)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.0, momentum=config.optim.momentum, weight_decay=config.optim.weight_decay
        )

    def step(self) -> None:
        self.utils.update_momentum(self.student, self.teacher, self.momentum)
        with self.autocast():
            query = self.student(self.query)
            with torch.no_grad():
                key = self.teacher(self.key)
            loss = self.losses["image"](query["image"], key["image"])
            if "dense" in query:
                matched = self.utils.select_most_similar(query["features"], key["features"], key["dense"])
                dense = self.losses["dense"](query["dense"].flatten(end_dim=1), matched.flatten(end_dim=1))
                loss = 0.5 * loss + 0.5 * dense
        self._update(loss)

    def passes(self) -> None:
        with self.autocast():
            with torch.no_grad():
                self.teacher(self.key)
            query = self.student(self.query)
        self._update(torch.stack([query[head].mean() for head in ("image", "dense") if head in query]).sum())

    def _update(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class _Encoder(nn.Module):
    """Images [B, 3, S, S] -> "image" [B, D]; DenseCL also "features" [B, h w, C] and "dense" [B, h w, D]."""

    def __init__(self, name: str, dense: bool) -> None:
        from lightly.models.modules import DenseCLProjectionHead, MoCoProjectionHead

        super().__init__()
        self.backbone = build_backbone(name)
        self.stride, channels = list(self.backbone.channels.items())[-1]
        head: Any = DenseCLProjectionHead if dense else MoCoProjectionHead
        self.head = head(channels, HIDDEN, DIM)
        self.dense_head = head(channels, HIDDEN, DIM) if dense else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        lattice = self.backbone(images)[self.stride]
        out = {"image": self.head(lattice.mean(dim=(2, 3)))}
        if self.dense_head is not None:
            features = lattice.flatten(2).transpose(1, 2)
            out |= {"features": features, "dense": self.dense_head(features)}
        return out
