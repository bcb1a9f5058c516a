"""Label-free health of dense features on held-out images, and the alarms that follow from it.

Health is measured on the student's backbone features (what is exported), not on the heads. If the images come with COCO
masks, it also measures how well the features group objects; nothing is trained on the masks.

Shapes: B images, N points per image, C channels, h x w the feature grid, S x S cells of a view for ids of objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from plrc.config import Config
from plrc.data import photometric
from plrc.data.image_errors import ImageError
from plrc.data.loader import Batch, ViewDataset, collate
from plrc.data.masks import CocoMasks, read_coco_masks
from plrc.data.points import match_draws, match_points
from plrc.data.sources import ImageList
from plrc.data.views import MATCH, QUERY
from plrc.errors import PlrcError
from plrc.geometry import cell_centers, look_up, sample, to_image
from plrc.measures.features import feature_statistics
from plrc.measures.grouping import grouping_auc

POINTS = 32  # per held-out image
BATCH_SIZE = 16
MASK_SIDE = 64  # S
_MAX_MASK_SIDE = 1024  # of a whole image of which a tile is used
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5
COLLAPSE_ADVICE = (
    "the features have collapsed; start again with a lower optim.lr, or a larger optim.batch_size or teacher momentum"
)


@dataclass(frozen=True)
class Health:
    """The result of a health check.

    Attributes:
        step: The step after which it was made.
        feature_std: Standard deviation of unit features over points, times sqrt(C): 1 if they are spread evenly, 0 if
            all are equal.
        effective_rank: exp of the entropy of the covariance's normalized eigenvalues: 1 if features lie on a line.
        point_match: Share of points whose nearest feature in another view of the image is the same physical point.
        point_match_chance: The same for random features.
        grouping_auc: `measures.grouping.grouping_auc` of the held-out images, 0.5 by chance; None without masks.
    """

    step: int
    feature_std: float
    effective_rank: float
    point_match: float
    point_match_chance: float
    grouping_auc: float | None = None

    def __str__(self) -> str:
        sentence = (
            f"health at step {self.step}: feature std {self.feature_std:.3f}, "
            f"effective rank {self.effective_rank:.1f}, "
            f"point match {self.point_match:.3f} (chance {self.point_match_chance:.3f})"
        )
        if self.grouping_auc is not None:
            sentence += f", grouping AUC {self.grouping_auc:.3f} (chance 0.5)"
        return sentence

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as metrics.jsonl and checkpoints hold them."""
        return asdict(self)


class ViewFeatures(NamedTuple):
    """Features of two views of the same images."""

    first: Tensor  # [B, N, C], of unit length, at points of the first view
    second: Tensor  # [B, N, C], of unit length, at the same physical points of the second view
    valid: Tensor  # bool [B, N], whether the second view shows the point
    first_grid: Tensor  # [B, C, h, w], all features of the first view


class HealthCheck:
    """Measures the health of features on two overlapping, augmented views of each held-out image.

    The views are drawn once, so that all checks of a run use the same ones.

    Args:
        config: The configuration of the run.
        images: All images.
        held_out: Positions of the held-out images in `images`.
        device: Where the features are computed.

    Attributes:
        batches: The views.
        objects: Ids of the objects in the first views of all images, [B, S, S]; None without masks.
        unreadable: Name -> reason for the held-out images that cannot be read.
    """

    def __init__(self, config: Config, images: ImageList, held_out: np.ndarray, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.unreadable: dict[str, str] = {}
        with_view_b = {"objectives.distill_weight": 1.0, "objectives.distill_points": POINTS}
        # the check uses neither regions nor a frozen teacher
        without_the_rest = {"regions.source": "grid", "regions.maps": "", "teacher.kind": "ema"}
        dataset = ViewDataset(images, held_out, config.with_values(with_view_b | without_the_rest))
        samples: list[Batch] = []
        names: list[str] = []
        for index in range(len(held_out)):
            sample_or_reason = dataset.load_sample(0, index)
            if isinstance(sample_or_reason, Batch):
                samples.append(sample_or_reason)
                names.append(dataset.name(index))
            else:
                self.unreadable[dataset.name(index)] = sample_or_reason
        starts = range(0, len(samples), BATCH_SIZE)
        self.batches = [collate(samples[start : start + BATCH_SIZE]) for start in starts]
        self.objects = _objects(config, images, names, self.batches)

    @torch.no_grad()
    def measure(self, backbone: nn.Module, stride: int, step: int) -> Health | None:
        """Measure the health of features.

        Args:
            backbone: Images -> {stride: features}; it is left in the mode that it was in.
            stride: The feature level to measure.
            step: Number of steps so far.

        Returns:
            The measurements; None if there is no held-out image.
        """
        if not self.batches:
            return None
        training = backbone.training
        backbone.eval()
        features: list[Tensor] = []
        grids: list[Tensor] = []
        matched = 0.0
        matched_by_chance = 0.0
        num_points = 0
        for batch in self.batches:
            views = self._view_features(backbone, stride, batch.to(self.device))
            features += [views.first[views.valid], views.second[views.valid]]
            if self.objects is not None:
                grids.append(views.first_grid)
            affinity = views.first @ views.second.transpose(1, 2)
            affinity.masked_fill_(~views.valid[:, None, :], -2.0)  # below every cosine: never the nearest
            is_match = affinity.argmax(dim=2) == torch.arange(POINTS, device=self.device)
            matched += float((is_match & views.valid).sum())
            valid_points = views.valid.sum(dim=1)
            # n points that are matched at random give n * 1 / n = 1 match per image
            matched_by_chance += float((valid_points > 0).sum())
            num_points += int(valid_points.sum())
        backbone.train(training)
        feature_std, effective_rank = feature_statistics(torch.cat(features))
        return Health(
            step,
            feature_std,
            effective_rank,
            point_match=matched / max(num_points, 1),
            point_match_chance=matched_by_chance / max(num_points, 1),
            grouping_auc=self._measure_grouping(torch.cat(grids)) if grids else None,
        )

    def _measure_grouping(self, features: Tensor) -> float | None:
        """Measure grouping of the features of the first views [B, C, h, w]; None if they do not show enough objects."""
        assert self.objects is not None
        has_objects = (self.objects > 0).flatten(1).any(dim=1)
        if not has_objects.any():
            return None
        features = features[has_objects.to(features.device)]
        try:
            return grouping_auc(features, self.objects[has_objects], points=2 * POINTS)
        except PlrcError:  # all pairs of points are on the same object, or none is
            return None

    def _view_features(self, backbone: nn.Module, stride: int, batch: Batch) -> ViewFeatures:
        draws = batch.match_uniform[:, : match_draws(POINTS)]
        points = match_points(batch.maps[QUERY], batch.maps[MATCH], draws, POINTS)
        views = self.config.views
        statistics = self.config.data.pixels
        first_images = photometric.augment(batch.images[QUERY], batch.color_uniform[QUERY], views, statistics)
        first_grid = backbone(first_images, stride)[stride]
        second_images = photometric.augment(batch.images[MATCH], batch.color_uniform[MATCH], views, statistics)
        second_grid = backbone(second_images, stride)[stride]
        first = F.normalize(sample(first_grid, points.student), dim=-1)
        second = F.normalize(sample(second_grid, points.teacher), dim=-1)
        return ViewFeatures(first, second, points.valid, first_grid)


def alarms(history: Sequence[Health]) -> list[str]:
    """Describe what is wrong with the features at the newest check.

    Args:
        history: All checks so far; the first was made at the start of the run.
    """
    first = history[0]
    now = history[-1]
    sentences: list[str] = []
    measured = f"feature std {now.feature_std:.3f}, effective rank {now.effective_rank:.1f}"
    if has_collapsed(now, first):
        sentences.append(f"{measured}: {COLLAPSE_ADVICE}")
    elif now is first and (now.feature_std < COLLAPSED_STD or now.effective_rank < COLLAPSED_RANK):
        sentences.append(f"{measured}: with the initial weights, features hardly differ from place to place")
    elif now.effective_rank < 0.25 * first.effective_rank:
        change = f"from {first.effective_rank:.1f} to {now.effective_rank:.1f}"
        sentences.append(f"the effective rank fell {change}: collapse may be near")
    if len(history) > 2 and now.point_match < 1.5 * now.point_match_chance:
        measured = f"{now.point_match:.3f}, chance {now.point_match_chance:.3f}"
        sentences.append(
            f"points are matched between views at chance level ({measured}): the features carry no position"
        )
    return sentences


def should_stop(history: Sequence[Health]) -> bool:
    """Return whether the features were collapsed at the last two checks."""
    return len(history) >= 2 and all(has_collapsed(check, history[0]) for check in history[-2:])


def has_collapsed(check: Health, start: Health) -> bool:
    """Return whether the features have collapsed since the start; a measure that is nan counts as collapsed.

    Some networks begin with features that hardly vary. Their limits are lower: half-way from the start to a collapse.

    Args:
        check: A health check of the run.
        start: The check before training.
    """
    least_std = min(COLLAPSED_STD, start.feature_std / 2)
    least_rank = min(COLLAPSED_RANK, (1 + start.effective_rank) / 2)
    return not (check.feature_std >= least_std and check.effective_rank >= least_rank)


def _objects(config: Config, images: ImageList, names: Sequence[str], batches: Sequence[Batch]) -> Tensor | None:
    """Return the ids of objects in the first views, [B, S, S] as `grouping_auc` takes them; None without masks."""
    has_masks = config.regions.source == "coco" or images.layout == "coco"
    if not batches or not has_masks:
        return None
    file = config.regions.maps if config.regions.source == "coco" else config.data.source
    try:
        shards = images.shards.select(images.names, names) if images.shards else None
        masks = read_coco_masks(file, replace(images, names=tuple(names), shards=shards), config.data.channels)
    except PlrcError:  # the file has only boxes, or the package for masks is missing: grouping is not measured
        return None
    view_maps = torch.cat([batch.maps[QUERY] for batch in batches])
    tiles = torch.cat([batch.tiles for batch in batches])
    side = min(math.ceil(MASK_SIDE / float(tiles[:, :2].min())), _MAX_MASK_SIDE)  # a tile has MASK_SIDE of these cells
    object_maps = [_object_map(masks, name, side) for name in names]
    in_tiles = to_image(cell_centers(MASK_SIDE, MASK_SIDE).expand(len(names), -1, -1), view_maps)
    points = to_image(in_tiles, tiles)
    ids = look_up(torch.from_numpy(np.stack(object_maps)), points)
    return ids.reshape(len(names), MASK_SIDE, MASK_SIDE)


def _object_map(masks: CocoMasks, name: str, side: int) -> NDArray[np.int32]:
    """The objects of an image, [side, side]; all unlabelled if the file does not have them."""
    try:
        return masks.objects(name, side)
    except ImageError:
        return np.full((side, side), -1, dtype=np.int32)
