"""The loss terms of one feature level, and the state that they need: key queue and center.

Views (METHOD section 2): the student sees A (QUERY); its moving average sees B (MATCH) and C (REFERENCE); a frozen
teacher sees the whole image.

Shapes: B images, R processes, N points, M positions of the reference grid, D features, h x w feature cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from plrc import distributed, geometry, objectives, rng
from plrc.config import Config
from plrc.data.loader import Batch
from plrc.data.points import ContrastPoints, contrast_points, match_points, pixel_points
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.geometry import sample
from plrc.model import KeyQueue, feature_side
from plrc.objectives import Term
from plrc.objectives.reference import cell_mixture, reference_keys
from plrc.objectives.target import AffinityTarget, affinity_target, distillation_to_target

CENTER_MOMENTUM = 0.9
"""Momentum of the running mean that `objectives.center` subtracts."""

HeadFeatures = dict[str, Tensor]
"""Features of a view on one level by the name of the head, [B, D, h, w]."""


@dataclass(frozen=True)
class LevelOutput:
    """What a level computes from a micro-batch.

    Attributes:
        terms: The loss terms by name.
        keys: [R * B, D] image keys of all processes, for the queue; None if image contrast is not trained.
        affinity: (mean, number of queries) from `mean_affinity`, to update the center; None if no center is used.
    """

    terms: dict[str, Term] = field(default_factory=dict)
    keys: Tensor | None = None
    affinity: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class FrozenFeatures:
    """What all levels need of a frozen teacher in a micro-batch.

    Attributes:
        features: The teacher's features of the whole images, [B, D, h, w].
        positions: Points in the frame of view A, [B, N, 2].
        at_points: The teacher's features at these points, of unit length, [B, N, D].
        target: The teacher's affinities of the points to a grid of the whole image; None in the relational form, where
            each level has a grid of its own in view C.
    """

    features: Tensor
    positions: Tensor
    at_points: Tensor
    target: AffinityTarget | None


def read_frozen(features: Tensor, batch: Batch, config: Config, teacher_temperature: float) -> FrozenFeatures:
    """Read a frozen teacher's features at the points of view A.

    Args:
        features: The teacher's features of the whole images, [B, D, h, w].
        batch: The views of B images.
        config: The settings of the run.
        teacher_temperature: The temperature of the teachers' affinities at this step.
    """
    positions = batch.match_uniform.view(len(features), -1, 2)  # the points of the student in `match_points`
    at_points = _unit(sample(features, geometry.to_image(positions, batch.maps[QUERY])))
    target: AffinityTarget | None = None
    if config.teacher.form == "projected":
        side = config.objectives.reference_grid or features.shape[-1]
        keys, _ = reference_keys(features, side)
        target = affinity_target(at_points, keys, teacher_temperature)
    return FrozenFeatures(features, positions, at_points, target)


class Level:
    """Computes the loss terms of one feature level.

    Args:
        config: The settings of the run.
        index: Position of the level in `model.strides`.
        weights: The weight of each term that is computed.
        device: Where it is trained.

    Attributes:
        stride: The stride of the level.
        feature_side: Cells per side of its feature grid.
        queue: Past image keys; None if image contrast is not trained.
        center: [M] running mean of the teacher's affinities; None if it is not used.
        mixture: [M, h w] of `cell_mixture`; None if distillation is not trained, or is cheaper without it (see
            `reference_keys`).
    """

    def __init__(self, config: Config, index: int, weights: dict[str, float], device: torch.device) -> None:
        self.config = config
        self.weights = weights
        self.stride = config.model.strides[index]
        self.feature_side = feature_side(config.model, config.views.size, self.stride)
        self.queue: KeyQueue | None = None
        if "image" in weights:
            seed = rng.torch_seed(config.seed, "weights", index=1 + index)  # index 0 is the seed of the student
            generator = torch.Generator().manual_seed(seed)
            self.queue = KeyQueue(config.objectives.queue, config.model.contrast_dim, generator).to(device)
        self.center: Tensor | None = None
        if "distill" in weights and config.objectives.center:
            self.center = torch.zeros(self.reference_side() ** 2, device=device)
        self.mixture: Tensor | None = None
        has_few_cells = self.feature_side**2 < config.model.distill_dim  # fewer cells than features
        if "distill" in weights and has_few_cells:
            self.mixture = cell_mixture(self.feature_side, self.reference_side(), device)

    def reference_side(self) -> int:
        """Return the number of positions per side of the reference grid of affinity distillation."""
        return self.config.objectives.reference_grid or 2 * self.feature_side

    def key_counts(self, frozen_side: int) -> dict[str, int]:
        """Return the number of keys that each query of a term is compared with.

        Args:
            frozen_side: Cells per side of a frozen teacher's features.
        """
        objective_config = self.config.objectives
        images_with_keys = 1
        if objective_config.negatives == "batch":
            images_with_keys = self.config.optim.batch_size // self.config.optim.gradient_accumulation_steps
        points_per_image = self.feature_side**2 if objective_config.contrasts_pixels else objective_config.points
        return {
            "image": objective_config.queue + 1,
            "point": points_per_image * images_with_keys,
            "distill": self.reference_side() ** 2,
            "frozen": self._frozen_side(frozen_side) ** 2,
        }

    def compute_terms(
        self,
        batch: Batch,
        query: HeadFeatures,
        reference: HeadFeatures,
        match: HeadFeatures,
        frozen: FrozenFeatures | None,
        teacher_temperature: float,
    ) -> LevelOutput:
        """Compute the loss terms.

        Args:
            batch: The views of B images.
            query: The student's features of A.
            reference: The moving average's features of C; the head "frozen" is needed in the relational form only.
            match: The moving average's features of B.
            frozen: The frozen teacher's features; None: there is no such teacher.
            teacher_temperature: The temperature of the teachers' affinities at this step.
        """
        terms: dict[str, Term] = {}
        keys_of_all_processes: Tensor | None = None
        affinity: tuple[Tensor, Tensor] | None = None
        if self.queue is not None:
            image_queries = _image_features(query["contrast"])
            image_keys = _image_features(reference["contrast"])
            temperature = self.config.objectives.image_temperature
            terms["image"] = objectives.image_term(image_queries, image_keys, self.queue.keys, temperature)
            keys_of_all_processes = distributed.gather(image_keys)
        if "point" in self.weights:
            key_view = match if self.config.objectives.contrasts_pixels else reference
            terms["point"] = self._point_term(batch, query["contrast"], key_view["contrast"])
        if "distill" in self.weights:
            terms["distill"], affinity = self._distill_term(
                batch, query["distill"], match["distill"], reference["distill"], teacher_temperature
            )
        if frozen is not None:
            terms["frozen"] = self._frozen_term(
                batch, query["frozen"], reference.get("frozen"), frozen, teacher_temperature
            )
        return LevelOutput(terms, keys_of_all_processes, affinity)

    def update(self, outputs: Sequence[LevelOutput], keep: Tensor) -> None:
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
            count = torch.stack([count for _, count in affinities]).sum()
            total = distributed.sum_over_processes(total)
            count = distributed.sum_over_processes(count)
            step_mean = total / count.clamp(min=1)
            updated = self.center.lerp(step_mean, 1 - CENTER_MOMENTUM)
            self.center.copy_(torch.where(keep, updated, self.center))

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
        # negatives from all images of all processes
        query_ids = _ids_over_all_images(points.query_regions, num_ids)
        key_ids = _ids_over_all_images(points.key_regions, num_ids)
        all_keys = distributed.gather(key.flatten(0, 1))
        all_key_ids = distributed.gather(key_ids)
        return objectives.point_region_term(
            query.flatten(0, 1), all_keys, query_ids, all_key_ids, objective_config.point_temperature
        )

    def _choose_points(self, batch: Batch) -> tuple[ContrastPoints, int]:
        """Choose the points to contrast. Returns (points, an upper bound: all their region ids are below it)."""
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
        """Compute affinity distillation from the moving average. Returns (term, `LevelOutput.affinity`).

        `query`, `match` and `reference` are features [B, D, h, w]: the student's of A, the moving average's of B and C.
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

    def _frozen_term(
        self, batch: Batch, query: Tensor, reference: Tensor | None, frozen: FrozenFeatures, teacher_temperature: float
    ) -> Term:
        """Compute affinity distillation from a frozen teacher (METHOD section 6).

        `query` and `reference` are features [B, D, h, w]: the student's of A, and the moving average's of C (None in
        the projected form).
        """
        temperature = self.config.objectives.student_temperature
        student_features = _unit(sample(query, frozen.positions))
        if frozen.target is not None:  # projected form
            return distillation_to_target(student_features, frozen.target, temperature)
        assert reference is not None  # relational form
        side = self.reference_side()
        keys, _ = reference_keys(reference, side)
        # The teacher's features of the whole image are read where the positions of C's reference grid lie.
        grid = geometry.cell_centers(side, side, query.device).expand(len(query), -1, -1)
        teacher_keys = _unit(sample(frozen.features, geometry.to_image(grid, batch.maps[REFERENCE])))
        return objectives.relational_distillation_term(
            student_features, keys, frozen.at_points, teacher_keys, temperature, teacher_temperature
        )

    def _frozen_side(self, frozen_side: int) -> int:
        """Return the number of positions per side of the reference grid of distillation from a frozen teacher."""
        if self.config.teacher.form == "relational":
            return self.reference_side()
        return self.config.objectives.reference_grid or frozen_side


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


def _image_features(features: Tensor) -> Tensor:
    """Average over positions, then normalize (METHOD section 3): [B, D, h, w] -> [B, D]."""
    return _unit(features.float().mean(dim=(2, 3)))


def _ids_over_all_images(ids: Tensor, num_ids: int) -> Tensor:
    """Turn ids [B, N], unique within an image, into ids [B * N], unique over the images of all processes.

    All ids must be below `num_ids`; -1 stays -1.
    """
    first_image = distributed.rank() * len(ids)
    image = torch.arange(first_image, first_image + len(ids), device=ids.device)
    return torch.where(ids >= 0, ids + (image * num_ids)[:, None], -1).flatten()
