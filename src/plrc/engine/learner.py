"""Student, teacher, key queue and center, and the forward pass from a batch to the loss terms.

uint8 views -> augmented views -> student features of A, teacher features of C and B -> features at points -> terms.
The loop (pretrain.py) decides what happens with the terms.

Shapes: V views, B images, R processes, N points, M positions of the reference grid, D features, h x w feature cells.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc import distributed, objectives, rng
from plrc.config import Config
from plrc.data import photometric
from plrc.data.loader import Batch
from plrc.data.points import ContrastPoints, contrast_points, match_points, pixel_points
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.geometry import sample
from plrc.model import KeyQueue, Network, check_feature_side, feature_side, make_teacher
from plrc.objectives import TERMS, Term
from plrc.objectives.reference import cell_mixture, reference_keys
from plrc.objectives.terms import valid_counts
from plrc.runtime import choose_precision

CENTER_MOMENTUM = 0.9
Features = dict[str, Tensor]


@dataclass(frozen=True)
class StepOutput:
    """What the forward pass of a micro-batch gives.

    Attributes:
        terms: The loss terms by name.
        keys: [R * B, D] image keys of all processes, for the queue; None without image contrast.
        affinity: Mean over queries of the teacher's affinities [M] and the number of queries; None without a center.
    """

    terms: dict[str, Term]
    keys: Tensor | None
    affinity: tuple[Tensor, Tensor] | None


class Learner:
    """Student, teacher, key queue and center, and the forward pass from a batch to the loss terms.

    Attributes:
        student: The network that is trained.
        teacher: Its momentum copy.
        queue: Past image keys; None without image contrast.
        center: [M] running mean of the teacher's affinities; None if it is not used.
        weights: The weight of each term that is computed.
        precision: The dtype of networks; objectives are always float32 or wider.
        memory_format: The memory layout of images and networks.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.feature_side = feature_side(config.model, config.views.size)
        all_weights = {name: float(getattr(config.objectives, term.weight)) for name, term in TERMS.items()}
        self.weights = {name: weight for name, weight in all_weights.items() if weight > 0}
        self.uses_contrast_head = "image" in self.weights or "point" in self.weights
        self.uses_distill_head = "distill" in self.weights
        self.needs_reference = (
            self.uses_distill_head or "image" in self.weights or not config.objectives.contrasts_pixels
        )
        self.precision = choose_precision(config.optim.precision, device)
        self.memory_format = torch.channels_last if config.optim.channels_last else torch.contiguous_format

        torch.manual_seed(rng.torch_seed(config.seed, "weights"))
        student = Network(config.model, self.uses_contrast_head, self.uses_distill_head)
        check_feature_side(student, config.model, config.views.size)
        self.student: Network = student.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.teacher = make_teacher(self.student)
        self.queue: KeyQueue | None = None
        if "image" in self.weights:
            generator = torch.Generator().manual_seed(rng.torch_seed(config.seed, "weights", index=1))
            self.queue = KeyQueue(config.objectives.queue, config.model.contrast_dim, generator).to(device)
        self.center: Tensor | None = None
        if self.uses_distill_head and config.objectives.center:
            self.center = torch.zeros(self.reference_side() ** 2, device=device)
        self.mixture: Tensor | None = None  # of `reference_keys`, which is cheaper with fewer cells than features
        if self.uses_distill_head and self.feature_side**2 < config.model.distill_dim:
            self.mixture = cell_mixture(self.feature_side, self.reference_side(), device)

    def compute_terms(
        self, batch: Batch, student: Callable[..., Features], order: Tensor, teacher_temperature: float
    ) -> StepOutput:
        """Run student and teacher on a micro-batch and compute the loss terms.

        Args:
            batch: The views of B images.
            student: How to call the student, which may be wrapped or compiled.
            order: [R * B] a permutation of the images of all processes, by which the teacher's BatchNorm groups differ
                from the student's.
            teacher_temperature: The temperature of the teacher's affinities at this step.
        """
        settings = self.config.objectives
        views = self._augment(batch)
        reference: Features = {}
        match: Features = {}
        with self._autocast():
            with torch.no_grad():
                if self.needs_reference:
                    reference = self._teacher_forward(views[REFERENCE], order, self.uses_contrast_head)
                if settings.needs_match_view:
                    match = self._teacher_forward(views[MATCH], order, settings.contrasts_pixels)
            query = student(views[QUERY], self.config.model.bn_groups, self.uses_contrast_head, self.uses_distill_head)

        terms: dict[str, Term] = {}
        image_keys: Tensor | None = None
        affinity: tuple[Tensor, Tensor] | None = None
        if self.queue is not None:
            image_key = _image_feature(reference["contrast"])
            image_query = _image_feature(query["contrast"])
            terms["image"] = objectives.image_term(image_query, image_key, self.queue.keys, settings.image_temperature)
            image_keys = distributed.gather(image_key)
        if "point" in self.weights:
            other_view = match if settings.contrasts_pixels else reference
            terms["point"] = self._point_term(batch, query["contrast"], other_view["contrast"])
        if "distill" in self.weights:
            terms["distill"], affinity = self._distill_term(
                batch, query["distill"], match["distill"], reference["distill"], teacher_temperature
            )
        return StepOutput(terms, image_keys, affinity)

    def total_loss(self, terms: dict[str, Term]) -> Tensor:
        """Add up the terms by their weights: a scalar whose gradients DDP may average over processes."""
        counts = distributed.sum_over_processes(valid_counts(terms))
        return objectives.total_loss(terms, self.weights, counts) * distributed.world_size()

    def update_queue_and_center(self, outputs: Sequence[StepOutput], keep: Tensor) -> None:
        """Push the image keys of a step and move the center.

        Args:
            outputs: The outputs of the step's micro-batches.
            keep: 0-dim bool; False leaves everything as it is, without waiting for the device.
        """
        if self.queue is not None:
            keys = [output.keys for output in outputs if output.keys is not None]
            self.queue.push(torch.cat(keys), keep)
        if self.center is not None:
            affinities = [output.affinity for output in outputs if output.affinity is not None]
            total = torch.stack([mean * count for mean, count in affinities]).sum(dim=0)
            count = torch.stack([count for _, count in affinities]).sum()
            mean = distributed.sum_over_processes(total) / distributed.sum_over_processes(count).clamp(min=1)
            self.center.copy_(torch.where(keep, self.center.lerp(mean, 1 - CENTER_MOMENTUM), self.center))

    def wrapped_student(self) -> nn.Module:
        """Return the student as the loop calls it: compiled if configured, synchronized over several processes."""
        if self.config.optim.compile:
            self.student.compile()
            self.teacher.compile()
        if distributed.world_size() == 1:
            return self.student
        if self.config.model.sync_bn:  # replaces modules in place, and keeps their parameters and buffers
            nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
            nn.SyncBatchNorm.convert_sync_batchnorm(self.teacher)
        single_backward = self.config.optim.gradient_accumulation_steps == 1
        stops_early = self.config.model.stride < max(self.student.backbone.channels)
        may_skip_layers = stops_early or ":" in self.config.model.backbone
        with warnings.catch_warnings():  # newer releases of PyTorch advise a name that older ones do not have
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                self.student,
                broadcast_buffers=False,
                static_graph=single_backward,
                find_unused_parameters=may_skip_layers and not single_backward,
            )

    def key_counts(self) -> dict[str, int]:
        """Return the number of keys that each query of a term is compared with."""
        settings = self.config.objectives
        images = 1
        if settings.negatives == "batch":
            images = self.config.optim.batch_size // self.config.optim.gradient_accumulation_steps
        points = self.feature_side**2 if settings.contrasts_pixels else settings.points
        return {"image": settings.queue + 1, "point": points * images, "distill": self.reference_side() ** 2}

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that a checkpoint holds, by name."""
        parts = {"student": self.student, "teacher": self.teacher, "queue": self.queue}
        return {name: module for name, module in parts.items() if module is not None}

    def reference_side(self) -> int:
        """Return the positions per side of the reference grid of affinity distillation."""
        return self.config.objectives.reference_grid or 2 * self.feature_side

    def _augment(self, batch: Batch) -> Tensor:
        """Augment uint8 views [V, B, 3, S, S] into normalized float views of the same shape."""
        joined = batch.images.flatten(0, 1)
        images = photometric.augment(joined, batch.color_uniform.flatten(0, 1), self.config.views)
        views: Tensor = images.contiguous(memory_format=self.memory_format).unflatten(0, batch.images.shape[:2])
        return views

    def _teacher_forward(self, images: Tensor, order: Tensor, contrast: bool) -> Features:
        """Run the teacher on a view, in BatchNorm groups other than the student's."""
        groups = self.config.model.bn_groups
        if distributed.world_size() == 1 and groups == 1:
            features: Features = self.teacher(images, 1, contrast, self.uses_distill_head)
            return features
        shuffled = distributed.shuffle(images, order).contiguous(memory_format=self.memory_format)
        features = self.teacher(shuffled, groups, contrast, self.uses_distill_head)
        return {name: distributed.unshuffle(value, order) for name, value in features.items()}

    def _point_term(self, batch: Batch, query_features: Tensor, key_features: Tensor) -> Term:
        """Contrast points of A with points of another view: features [B, D, h, w] of each."""
        settings = self.config.objectives
        points, count_ids = self._contrast_points(batch)
        query = sample(query_features, points.query)
        key = sample(key_features, points.key)
        if settings.contrast == "region":
            query = objectives.region_features(query, points.query_regions)
            key = objectives.region_features(key, points.key_regions)
        query = _unit(query)
        key = _unit(key)
        if settings.negatives == "image":
            return objectives.point_region_term(
                query, key, points.query_regions, points.key_regions, settings.point_temperature
            )
        query_ids = _ids_of_all_images(points.query_regions, count_ids)
        key_ids = _ids_of_all_images(points.key_regions, count_ids)
        all_keys = distributed.gather(key.flatten(0, 1))
        all_key_ids = distributed.gather(key_ids)
        return objectives.point_region_term(
            query.flatten(0, 1), all_keys, query_ids, all_key_ids, settings.point_temperature
        )

    def _contrast_points(self, batch: Batch) -> tuple[ContrastPoints, int]:
        """Choose the points to contrast; also how many ids an image can have."""
        maps = batch.maps
        if self.config.objectives.contrasts_pixels:
            return pixel_points(maps[QUERY], maps[MATCH], self.feature_side), self.feature_side**2
        count_ids = batch.regions.shape[1] * batch.regions.shape[2]
        count_points = self.config.objectives.points
        points = contrast_points(
            batch.regions, count_ids, maps[QUERY], maps[REFERENCE], batch.contrast_uniform, count_points
        )
        return points, count_ids

    def _distill_term(
        self, batch: Batch, query: Tensor, match: Tensor, reference: Tensor, teacher_temperature: float
    ) -> tuple[Term, tuple[Tensor, Tensor] | None]:
        """Distill affinities: features [B, D, h, w] of A by the student, of B and C by the teacher.

        Also what the center follows, if there is one.
        """
        settings = self.config.objectives
        points = match_points(batch.maps[QUERY], batch.maps[MATCH], batch.match_uniform, settings.distill_points)
        student = _unit(sample(query, points.student))
        teacher = _unit(sample(match, points.teacher))
        keys, basis = reference_keys(reference, self.reference_side(), self.mixture)
        if basis is not None:
            student = student @ basis
            teacher = teacher @ basis
        term = objectives.affinity_distillation_term(
            student, teacher, keys, settings.student_temperature, teacher_temperature, self.center, points.valid
        )
        if self.center is None:
            return term, None
        return term, objectives.mean_affinity(teacher, keys, points.valid)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


def _image_feature(features: Tensor) -> Tensor:
    """Average over positions, then normalize (METHOD section 3): [B, D, h, w] -> [B, D]."""
    return _unit(features.float().mean(dim=(2, 3)))


def _ids_of_all_images(ids: Tensor, count_ids: int) -> Tensor:
    """Make ids [B, N], which are unique per image, unique over the images of all processes: [B * N]; -1 stays."""
    first_image = distributed.rank() * len(ids)
    image = torch.arange(first_image, first_image + len(ids), device=ids.device)
    return torch.where(ids >= 0, ids + (image * count_ids)[:, None], -1).flatten()
