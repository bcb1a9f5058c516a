"""What is trained: student, teacher, queue and centre, and the way from a batch to the named terms.

Layer 4. Data flow: uint8 views -> augmented views -> teacher features of C and B, student features of A -> features at
points -> objectives. The loop (pretrain.py) decides what happens with the terms.

Shapes: V views, B images, N points, P distillation points, M lattice positions, D feature width, h x w the lattice.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc import distributed, rng
from plrc.config import Config
from plrc.data import photometric
from plrc.data.loader import Batch
from plrc.data.points import contrast_points, match_points, pixel_points
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.geometry import lattice, sample
from plrc.model import KeyQueue, Network, check_feature_side, feature_side, make_teacher
from plrc.objectives import (
    Term,
    affinity_distillation_term,
    image_term,
    mean_affinity,
    point_region_term,
    region_features,
)
from plrc.runtime import choose_precision

CENTER_MOMENTUM = 0.9
Features = dict[str, Tensor]


@dataclass(frozen=True)
class StepOutput:
    """The terms of one part of a step, and what is to be stored once the step is known to count."""

    terms: dict[str, Term]
    keys: Tensor | None  # [R * B, D] image keys of all processes, for the queue
    affinity: tuple[Tensor, Tensor] | None  # mean over queries of the teacher's affinities [M], their number


class Learner:
    """Owns the state that learning changes, apart from the optimiser's."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.side = feature_side(config.model, config.views.size)
        o = config.objectives
        self.contrast, self.distill = o.image_weight + o.point_weight > 0, o.distill_weight > 0
        torch.manual_seed(rng.torch_seed(config.seed, "weights"))
        memory_format = torch.channels_last if config.optim.channels_last else torch.contiguous_format
        student = Network(config.model, self.contrast, self.distill)
        check_feature_side(student, config.model, config.views.size)
        self.student: Network = student.to(device, memory_format=memory_format)  # type: ignore[call-overload]
        self.teacher = make_teacher(self.student)
        self.memory_format = memory_format
        generator = torch.Generator().manual_seed(rng.torch_seed(config.seed, "weights", index=1))
        self.queue = KeyQueue(o.queue, config.model.contrast_dim, generator).to(device) if o.image_weight > 0 else None
        self.center = torch.zeros(self.reference_side() ** 2, device=device) if self.distill and o.center else None
        self.precision = choose_precision(config.optim.precision, device)
        self.needs_reference = self.distill or o.image_weight > 0 or not o.pixels
        self.mixture = self._mixture() if self.distill and self.side**2 < config.model.distill_dim else None

    def compute_terms(
        self, batch: Batch, student: Callable[..., Features], order: Tensor, teacher_temperature: float
    ) -> StepOutput:
        """`student`: how to call the student (it may be wrapped or compiled); `order`: a permutation of the joined
        batch [R * B] by which the teacher's BatchNorm groups differ from the student's."""
        o, groups = self.config.objectives, self.config.model.bn_groups
        views = self._augment(batch)
        with self._autocast():
            with torch.no_grad():
                reference = (
                    self._teacher_forward(views[REFERENCE], order, self.contrast) if self.needs_reference else {}
                )
                match = self._teacher_forward(views[MATCH], order, o.pixels) if o.match_view else {}
            query = student(views[QUERY], groups, self.contrast, self.distill)
        terms: dict[str, Term] = {}
        keys, affinity = None, None
        if self.queue is not None:
            key = _image_feature(reference["contrast"])
            terms["image"] = image_term(_image_feature(query["contrast"]), key, self.queue.keys, o.image_temperature)
            keys = distributed.gather(key)
        if o.point_weight > 0:
            keys_of = match if o.pixels else reference
            terms["point"] = self._point_term(batch, query["contrast"], keys_of["contrast"])
        if self.distill:
            points = match_points(batch.maps[QUERY], batch.maps[MATCH], batch.match, o.distill_points)
            learned = _unit(sample(query["distill"], points.student))
            taught = _unit(sample(match["distill"], points.teacher))
            keys_at, basis = self._lattice_keys(reference["distill"])
            if basis is not None:
                learned, taught = learned @ basis, taught @ basis
            terms["distill"] = affinity_distillation_term(
                learned, taught, keys_at, o.student_temperature, teacher_temperature, self.center, points.valid
            )
            if self.center is not None:
                affinity = mean_affinity(taught, keys_at, points.valid)
        return StepOutput(terms, keys, affinity)

    def wrapped_student(self) -> nn.Module:
        """How the loop calls the student: compiled if asked for, synchronised over processes if there are several."""
        if self.config.optim.compile:
            self.student.compile()
            self.teacher.compile()
        if distributed.world_size() == 1:
            return self.student
        if self.config.model.sync_bn:  # replaces the modules in place; their parameters and buffers stay the same ones
            nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
            nn.SyncBatchNorm.convert_sync_batchnorm(self.teacher)
        once = self.config.optim.gradient_accumulation_steps == 1
        idle_layers = (
            self.config.model.stride < max(self.student.backbone.channels) or ":" in self.config.model.backbone
        )
        unused = idle_layers and not once
        with warnings.catch_warnings():  # newer releases of PyTorch advise a name that older ones do not have
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                self.student, broadcast_buffers=False, static_graph=once, find_unused_parameters=unused
            )

    def key_counts(self) -> dict[str, int]:
        """How many keys each query of a term is compared with."""
        o = self.config.objectives
        images = (
            self.config.optim.batch_size // self.config.optim.gradient_accumulation_steps
            if o.negatives == "batch"
            else 1
        )
        points = self.side**2 if o.pixels else o.points
        return {"image": o.queue + 1, "point": points * images, "distill": self.reference_side() ** 2}

    def modules(self) -> dict[str, nn.Module]:
        """The parts that a checkpoint holds, by name."""
        parts = {"student": self.student, "teacher": self.teacher, "queue": self.queue}
        return {name: module for name, module in parts.items() if module is not None}

    def update_queue_and_center(self, outcomes: list[StepOutput], keep: Tensor) -> None:
        """Push image keys and move the centre, unless `keep` is False."""
        if self.queue is not None:
            self.queue.push(torch.cat([o.keys for o in outcomes if o.keys is not None]), keep)
        if self.center is not None:
            found = [o.affinity for o in outcomes if o.affinity is not None]
            total = distributed.sum_over_processes(torch.stack([mean * count for mean, count in found]).sum(dim=0))
            count = distributed.sum_over_processes(torch.stack([count for _, count in found]).sum())
            mean = total / count.clamp(min=1)
            self.center.copy_(torch.where(keep, self.center.lerp(mean, 1 - CENTER_MOMENTUM), self.center))

    def _augment(self, batch: Batch) -> Tensor:
        """uint8 [V, B, 3, S, S] -> normalized float views of the same shape."""
        views, size = batch.images.shape[:2], batch.images.shape[2:]
        images = photometric.augment(batch.images.reshape(-1, *size), batch.color.flatten(0, 1), self.config.views)
        separate: Tensor = images.contiguous(memory_format=self.memory_format).unflatten(0, views)
        return separate

    def _teacher_forward(self, images: Tensor, order: Tensor, contrast: bool) -> Features:
        """The teacher's features of a view; its samples meet other company in BatchNorm than the student's do."""
        groups = self.config.model.bn_groups
        if distributed.world_size() == 1 and groups == 1:
            features: Features = self.teacher(images, 1, contrast, self.distill)
            return features
        shuffled = distributed.shuffle(images, order).contiguous(memory_format=self.memory_format)
        features = self.teacher(shuffled, groups, contrast, self.distill)
        return {name: distributed.unshuffle(value, order) for name, value in features.items()}

    def _point_term(self, batch: Batch, query: Tensor, key: Tensor) -> Term:
        """Contrast of A's features with those of C or, for pixels, of B: both [B, D, h, w]."""
        o, maps = self.config.objectives, batch.maps
        if o.pixels:
            count = self.side**2
            points = pixel_points(maps[QUERY], maps[MATCH], self.side)
        else:
            count = batch.regions.shape[1] * batch.regions.shape[2]
            points = contrast_points(batch.regions, count, maps[QUERY], maps[REFERENCE], batch.contrast, o.points)
        q, k, ids, key_ids = sample(query, points.query), sample(key, points.key), *points[2:]
        if o.contrast == "region":
            q, k = region_features(q, ids), region_features(k, key_ids)
        q, k = _unit(q), _unit(k)
        if o.negatives == "image":
            return point_region_term(q, k, ids, key_ids, o.point_temperature)
        first = distributed.rank() * len(ids)
        offset = (torch.arange(first, first + len(ids), device=ids.device) * count)[:, None]
        ids, key_ids = (torch.where(x >= 0, x + offset, -1).flatten() for x in (ids, key_ids))
        keys, key_ids = distributed.gather(k.flatten(0, 1)), distributed.gather(key_ids)
        return point_region_term(q.flatten(0, 1), keys, ids, key_ids, o.point_temperature)

    def _lattice_keys(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [B, D, h, w] of C -> unit keys at the dense lattice, and the basis to bring queries into, if any.

        A key is a mixture of the h w cells, so its affinities follow from a query's products with the cells. Where
        these are fewer than the features, keys [B, M, h w] are given in that basis [B, D, h w]: affinities are the same
        and cost h w / D of the arithmetic. Otherwise keys are [B, M, D].
        """
        if self.mixture is None:
            points = lattice(self.reference_side(), self.reference_side(), self.device)
            return _unit(sample(features, points.expand(len(features), -1, -1))), None
        cells = features.float().flatten(2)
        squares = (self.mixture @ (cells.mT @ cells) * self.mixture).sum(dim=-1, keepdim=True)
        return self.mixture / squares.clamp(min=1e-24).sqrt(), cells

    def _mixture(self) -> Tensor:
        """How the positions of the dense lattice mix the cells of the feature lattice: [M, h w]."""
        cells = torch.eye(self.side**2, device=self.device).unflatten(1, (self.side, self.side))
        return sample(cells[None], lattice(self.reference_side(), self.reference_side(), self.device)[None])[0]

    def reference_side(self) -> int:
        """Positions per side of the reference lattice of affinity distillation."""
        return self.config.objectives.reference_grid or 2 * self.side

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


def _image_feature(features: Tensor) -> Tensor:
    """[B, D, h, w] -> unit [B, D]: mean over positions, then normalized (METHOD section 3)."""
    return _unit(features.float().mean(dim=(2, 3)))
