"""Student, teacher, key queue and center, and the forward pass from a batch to the loss terms.

A batch holds two or three views of each image (METHOD section 2). The student sees A, the query view. The teacher sees
B, the match view, and C, the reference view. The forward pass augments the views, runs both networks, reads their
features at points, and computes the terms. The loop is in pretrain.py.

Shapes: V views, B images, R processes, N points, M positions of the reference grid, D features, h x w feature cells,
S the side of a view.
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
Features = dict[str, Tensor]  # [B, D, h, w] by the name of the head, "contrast" or "distill"


@dataclass(frozen=True)
class StepOutput:
    """The result of the forward pass of a micro-batch.

    Attributes:
        terms: The loss terms by name.
        keys: [R * B, D] image keys of all processes, for the queue; None if image contrast is not trained.
        affinity: (mean, number of queries) from `mean_affinity`, to update the center; None if no center is used.
    """

    terms: dict[str, Term]
    keys: Tensor | None
    affinity: tuple[Tensor, Tensor] | None


class Learner:
    """Student, teacher, key queue and center, and the forward pass from a batch to the loss terms.

    Attributes:
        student: The network that is trained.
        teacher: Its momentum copy.
        queue: Past image keys; None if image contrast is not trained.
        center: [M] running mean of the teacher's affinities; None if it is not used.
        weights: The weight of each term that is computed.
        precision: The dtype in which networks compute; objectives are always float32 or wider.
        memory_format: The memory layout of images and networks.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.feature_side = feature_side(config.model, config.views.size)
        all_weights = {name: float(getattr(config.objectives, term.weight_setting)) for name, term in TERMS.items()}
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
        # With fewer feature cells than features, distillation is cheaper in the basis of cells, see `reference_keys`.
        self.mixture: Tensor | None = None
        if self.uses_distill_head and self.feature_side**2 < config.model.distill_dim:
            self.mixture = cell_mixture(self.feature_side, self.reference_side(), device)

    def compute_terms(
        self, batch: Batch, student: Callable[..., Features], order: Tensor, teacher_temperature: float
    ) -> StepOutput:
        """Run student and teacher on a micro-batch and compute the loss terms.

        Args:
            batch: The views of B images.
            student: The student as `wrapped_student` returns it.
            order: [R * B] a permutation of the images of all processes. The teacher sees the images in this order, so
                that its BatchNorm groups differ from the student's.
            teacher_temperature: The temperature of the teacher's affinities at this step.
        """
        objective_config = self.config.objectives
        views = self._augment(batch)
        reference: Features = {}
        match: Features = {}
        with self._autocast():
            with torch.no_grad():
                if self.needs_reference:
                    reference = self._teacher_forward(views[REFERENCE], order, run_contrast=self.uses_contrast_head)
                if objective_config.needs_match_view:
                    match = self._teacher_forward(views[MATCH], order, run_contrast=objective_config.contrasts_pixels)
            query = student(views[QUERY], self.config.model.bn_groups, self.uses_contrast_head, self.uses_distill_head)

        terms: dict[str, Term] = {}
        keys_of_all_processes: Tensor | None = None
        affinity: tuple[Tensor, Tensor] | None = None
        if self.queue is not None:
            image_queries = _image_features(query["contrast"])
            image_keys = _image_features(reference["contrast"])
            terms["image"] = objectives.image_term(
                image_queries, image_keys, self.queue.keys, objective_config.image_temperature
            )
            keys_of_all_processes = distributed.gather(image_keys)
        if "point" in self.weights:
            key_view = match if objective_config.contrasts_pixels else reference
            terms["point"] = self._point_term(batch, query["contrast"], key_view["contrast"])
        if "distill" in self.weights:
            terms["distill"], affinity = self._distill_term(
                batch, query["distill"], match["distill"], reference["distill"], teacher_temperature
            )
        return StepOutput(terms, keys_of_all_processes, affinity)

    def total_loss(self, terms: dict[str, Term]) -> Tensor:
        """Add up the terms by their weights.

        Returns:
            A scalar: this process's share of the loss, times the number of processes, because DDP averages gradients.
        """
        counts = distributed.sum_over_processes(valid_counts(terms))
        return objectives.total_loss(terms, self.weights, counts) * distributed.world_size()

    def update_queue_and_center(self, outputs: Sequence[StepOutput], keep: Tensor) -> None:
        """Push the image keys of a step into the queue and update the running mean of the center.

        Args:
            outputs: The outputs of the step's micro-batches.
            keep: 0-dim bool, whether the step is kept. If False, queue and center stay as they are; the host does not
                wait for the value.
        """
        if self.queue is not None:
            keys = [output.keys for output in outputs if output.keys is not None]
            self.queue.push(torch.cat(keys), keep)
        if self.center is not None:
            affinities = [output.affinity for output in outputs if output.affinity is not None]
            total = torch.stack([mean * count for mean, count in affinities]).sum(dim=0)
            total_count = torch.stack([count for _, count in affinities]).sum()
            step_mean = distributed.sum_over_processes(total) / distributed.sum_over_processes(total_count).clamp(min=1)
            self.center.copy_(torch.where(keep, self.center.lerp(step_mean, 1 - CENTER_MOMENTUM), self.center))

    def wrapped_student(self) -> nn.Module:
        """Return the student as the loop calls it: in DistributedDataParallel if there are several processes.

        If configured, student and teacher are compiled in place, and their BatchNorm layers are synchronized.
        """
        if self.config.optim.compile:
            self.student.compile()
            self.teacher.compile()
        if distributed.world_size() == 1:
            return self.student
        if self.config.model.sync_bn:  # replaces modules in place, and keeps their parameters and buffers
            nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
            nn.SyncBatchNorm.convert_sync_batchnorm(self.teacher)
        # DDP must know whether some parameters get no gradient: a static graph finds that out in its first step, but
        # needs a single backward pass per step.
        single_backward = self.config.optim.gradient_accumulation_steps == 1
        stops_early = self.config.model.stride < max(self.student.backbone.channels)  # channels are listed by stride
        not_torchvision = ":" in self.config.model.backbone  # timm:NAME or the user's own function
        may_skip_layers = stops_early or not_torchvision
        with warnings.catch_warnings():  # newer releases of PyTorch rename the argument; older ones lack the new name
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                self.student,
                broadcast_buffers=False,
                static_graph=single_backward,
                find_unused_parameters=may_skip_layers and not single_backward,
            )

    def key_counts(self) -> dict[str, int]:
        """Return the number of keys that each query of a term is compared with."""
        objective_config = self.config.objectives
        images_with_keys = 1
        if objective_config.negatives == "batch":
            images_with_keys = self.config.optim.batch_size // self.config.optim.gradient_accumulation_steps
        points_per_image = self.feature_side**2 if objective_config.contrasts_pixels else objective_config.points
        return {
            "image": objective_config.queue + 1,
            "point": points_per_image * images_with_keys,
            "distill": self.reference_side() ** 2,
        }

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that a checkpoint holds, by name."""
        modules = {"student": self.student, "teacher": self.teacher, "queue": self.queue}
        return {name: module for name, module in modules.items() if module is not None}

    def reference_side(self) -> int:
        """Return the number of positions per side of the reference grid of affinity distillation."""
        return self.config.objectives.reference_grid or 2 * self.feature_side

    def _augment(self, batch: Batch) -> Tensor:
        """Augment uint8 views [V, B, 3, S, S] into normalized float views of the same shape."""
        joined = batch.images.flatten(0, 1)
        images = photometric.augment(joined, batch.color_uniform.flatten(0, 1), self.config.views)
        views: Tensor = images.contiguous(memory_format=self.memory_format).unflatten(0, batch.images.shape[:2])
        return views

    def _teacher_forward(self, images: Tensor, order: Tensor, run_contrast: bool) -> Features:
        """Run the teacher on a view whose images are shuffled over BatchNorm groups and processes.

        Features are returned in the order of `images`.
        """
        groups = self.config.model.bn_groups
        if distributed.world_size() == 1 and groups == 1:  # a single BatchNorm group: its order does not matter
            features: Features = self.teacher(images, 1, run_contrast, self.uses_distill_head)
            return features
        shuffled = distributed.shuffle(images, order).contiguous(memory_format=self.memory_format)
        features = self.teacher(shuffled, groups, run_contrast, self.uses_distill_head)
        return {name: distributed.unshuffle(value, order) for name, value in features.items()}

    def _point_term(self, batch: Batch, query_features: Tensor, key_features: Tensor) -> Term:
        """Contrast points of A with points of the key view; both features are [B, D, h, w]."""
        objective_config = self.config.objectives
        points, num_ids = self._choose_points(batch)
        query = sample(query_features, points.query)
        key = sample(key_features, points.key)
        if objective_config.contrast == "region":
            query = objectives.region_features(query, points.query_regions)
            key = objectives.region_features(key, points.key_regions)
        query = _unit(query)
        key = _unit(key)
        if objective_config.negatives == "image":
            return objectives.point_region_term(
                query, key, points.query_regions, points.key_regions, objective_config.point_temperature
            )
        # negatives from the images of all processes
        query_ids = _ids_over_all_images(points.query_regions, num_ids)
        key_ids = _ids_over_all_images(points.key_regions, num_ids)
        all_keys = distributed.gather(key.flatten(0, 1))
        all_key_ids = distributed.gather(key_ids)
        return objectives.point_region_term(
            query.flatten(0, 1), all_keys, query_ids, all_key_ids, objective_config.point_temperature
        )

    def _choose_points(self, batch: Batch) -> tuple[ContrastPoints, int]:
        """Choose the points to contrast. Returns (points, a number that all their region ids are below)."""
        maps = batch.maps
        if self.config.objectives.contrasts_pixels:
            return pixel_points(maps[QUERY], maps[MATCH], self.feature_side), self.feature_side**2
        num_ids = batch.regions.shape[1] * batch.regions.shape[2]  # as many as there are pixels in a region map
        points = contrast_points(
            regions=batch.regions,
            num_regions=num_ids,
            map_query=maps[QUERY],
            map_key=maps[REFERENCE],
            uniform=batch.contrast_uniform,
            num_points=self.config.objectives.points,
        )
        return points, num_ids

    def _distill_term(
        self, batch: Batch, query: Tensor, match: Tensor, reference: Tensor, teacher_temperature: float
    ) -> tuple[Term, tuple[Tensor, Tensor] | None]:
        """Compute affinity distillation from features [B, D, h, w].

        Args:
            batch: The views of B images.
            query: The student's features of A.
            match: The teacher's features of B.
            reference: The teacher's features of C.
            teacher_temperature: The temperature of the teacher's affinities at this step.

        Returns:
            (term, `StepOutput.affinity`).
        """
        objective_config = self.config.objectives
        points = match_points(
            batch.maps[QUERY], batch.maps[MATCH], batch.match_uniform, objective_config.distill_points
        )
        student_features = _unit(sample(query, points.student))
        teacher_features = _unit(sample(match, points.teacher))
        keys, basis = reference_keys(reference, self.reference_side(), self.mixture)
        if basis is not None:  # keys are in the basis of feature cells, and queries must be too
            student_features = student_features @ basis
            teacher_features = teacher_features @ basis
        term = objectives.affinity_distillation_term(
            student_features,
            teacher_features,
            keys,
            objective_config.student_temperature,
            teacher_temperature,
            self.center,
            points.valid,
        )
        if self.center is None:
            return term, None
        return term, objectives.mean_affinity(teacher_features, keys, points.valid)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


def _image_features(features: Tensor) -> Tensor:
    """Average over positions, then normalize (METHOD section 3): [B, D, h, w] -> [B, D]."""
    return _unit(features.float().mean(dim=(2, 3)))


def _ids_over_all_images(ids: Tensor, num_ids: int) -> Tensor:
    """Make ids [B, N], which are unique per image, unique over the images of all processes: [B * N]. -1 is kept.

    All ids must be below `num_ids`.
    """
    first_image = distributed.rank() * len(ids)
    image = torch.arange(first_image, first_image + len(ids), device=ids.device)
    return torch.where(ids >= 0, ids + (image * num_ids)[:, None], -1).flatten()
