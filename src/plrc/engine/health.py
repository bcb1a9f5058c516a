"""Label-free health of dense features on held-out images, and the plain-language alarms that follow from it.

Layer 4. Measured on the student's backbone features (what is exported), not on the heads. Where the images come with
COCO masks, how well the features group objects is measured too; nothing is trained on the masks.

Shapes: B images, N points per image, C channels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plrc.config import Config
from plrc.data import photometric
from plrc.data.loader import Batch, ViewDataset, collate
from plrc.data.points import match_draws, match_points
from plrc.data.region_files import read_masks
from plrc.data.sources import ImageList
from plrc.data.views import MATCH, QUERY
from plrc.errors import PlrcError
from plrc.geometry import lattice, look_up, sample, to_image
from plrc.measures.grouping import grouping_auc

POINTS = 32  # points per held-out image
PART = 16  # images that pass at once
MASK_SIDE = 64  # places per side of a view at which its objects are known
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5
COLLAPSE_ADVICE = (
    "the features have collapsed; start again with a lower optim.lr, or a larger optim.batch_size or teacher momentum"
)


@dataclass(frozen=True)
class Health:
    """One check.

    feature_std: standard deviation of unit features over points, times sqrt(C); 1 if spread evenly, 0 if all equal.
    effective_rank: exp of the entropy of the covariance's normalized eigenvalues; 1 if features lie on a line.
    point_match: share of points whose nearest feature in another view of the image is the same physical point.
    point_match_chance: the same by guessing.
    grouping_auc: `grouping.grouping_auc` of the held-out images, 0.5 by chance; None without masks.
    """

    step: int
    feature_std: float
    effective_rank: float
    point_match: float
    point_match_chance: float
    grouping_auc: float | None = None

    @property
    def collapsed(self) -> bool:
        return not (self.feature_std >= COLLAPSED_STD and self.effective_rank >= COLLAPSED_RANK)  # nan is collapsed

    def __str__(self) -> str:
        grouping = "" if self.grouping_auc is None else f", grouping AUC {self.grouping_auc:.3f} (chance 0.5)"
        return (
            f"health at step {self.step}: feature std {self.feature_std:.3f}, "
            f"effective rank {self.effective_rank:.1f}, "
            f"point match {self.point_match:.3f} (chance {self.point_match_chance:.3f}){grouping}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class HealthCheck:
    """Holds two overlapping, augmented views of each held-out image, the same ones for the whole run.

    `unreadable`: name and reason of the held-out images that are left out.
    """

    def __init__(self, config: Config, images: ImageList, held_out: np.ndarray, device: torch.device) -> None:
        self.config, self.device = config, device
        self.unreadable: dict[str, str] = {}
        with_match = {"objectives.distill_weight": 1.0, "objectives.distill_points": POINTS}
        dataset = ViewDataset(
            images, held_out, config.with_values(with_match | {"regions.source": "grid", "regions.maps": ""}, pin=False)
        )
        samples, names = [], []
        for index in range(len(held_out)):
            found = dataset.attempt(0, index)
            if isinstance(found, Batch):
                samples.append(found)
                names.append(dataset.name(index))
            else:
                self.unreadable[dataset.name(index)] = found
        self.parts = [collate(samples[i : i + PART]) for i in range(0, len(samples), PART)]
        self.objects = _objects(config, images, names, self.parts)

    @torch.no_grad()
    def measure(self, backbone: nn.Module, stride: int, step: int) -> Health | None:
        """Check the features of level `stride`; None where no image is held out. Leaves the backbone as it was."""
        if not self.parts:
            return None
        training = backbone.training
        backbone.eval()
        features, levels, right, chance, count = [], [], 0.0, 0.0, 0
        for part in self.parts:
            a, b, valid, level = self._point_features(backbone, stride, part.to(self.device))
            levels += [level] if self.objects is not None else []
            features += [a[valid], b[valid]]
            affinity = (a @ b.transpose(1, 2)).masked_fill(~valid[:, None, :], -2.0)
            hit = affinity.argmax(dim=2) == torch.arange(POINTS, device=self.device)
            right += float((hit & valid).sum())
            rivals = valid.sum(dim=1)
            chance += float((rivals > 0).sum())  # each image: rivals queries, each right with probability 1 / rivals
            count += int(rivals.sum())
        backbone.train(training)
        std, rank = spread(torch.cat(features))
        grouping = self._grouping(torch.cat(levels)) if levels else None
        return Health(step, std, rank, right / max(count, 1), chance / max(count, 1), grouping)

    def _grouping(self, features: Tensor) -> float | None:
        """Of the first views [B, C, h, w]; None where they show no two points to tell apart."""
        assert self.objects is not None
        shown = (self.objects > 0).flatten(1).any(dim=1)
        with contextlib.suppress(PlrcError):
            return grouping_auc(features[shown.to(features.device)], self.objects[shown], points=2 * POINTS)
        return None

    def _point_features(self, backbone: nn.Module, stride: int, part: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit features [B, N, C] of the same physical points in two views, which points both views show [B, N], and
        all features of the first view [B, C, h, w]."""
        points = match_points(part.maps[QUERY], part.maps[MATCH], part.match[:, : match_draws(POINTS)], POINTS)
        both, levels = [], []
        for view, where in ((QUERY, points.student), (MATCH, points.teacher)):
            images = photometric.augment(part.images[view], part.color[view], self.config.views)
            levels.append(backbone(images, stride)[stride])
            both.append(F.normalize(sample(levels[-1], where), dim=-1))
        return both[0], both[1], points.valid, levels[0]


def _objects(config: Config, images: ImageList, names: Sequence[str], parts: Sequence[Batch]) -> Tensor | None:
    """The objects in the first views of the named images, [B, S, S] as `grouping_auc` takes them; None where the images
    come without masks."""
    file = config.regions.maps if config.regions.source == "coco" else config.data.source
    if not parts or (config.regions.source != "coco" and images.layout != "coco"):
        return None
    try:
        masks = read_masks(file, ImageList(images.root, tuple(names), images.layout))
    except PlrcError:  # boxes alone, or no package for masks: this measure is left out
        return None
    nothing = np.full((MASK_SIDE, MASK_SIDE), -1, dtype=np.int32)
    maps = [masks.objects(name, MASK_SIDE) if name in masks.entries else nothing for name in names]
    places = torch.cat([part.maps[QUERY] for part in parts])
    points = to_image(lattice(MASK_SIDE, MASK_SIDE).expand(len(names), -1, -1), places)
    return look_up(torch.from_numpy(np.stack(maps)), points).reshape(len(names), MASK_SIDE, MASK_SIDE)


def spread(features: Tensor) -> tuple[float, float]:
    """(feature_std, effective_rank) of unit-length features [N, C], as in `Health`; nan where one is not finite."""
    if len(features) < 2:
        return 0.0, 1.0
    if not bool(features.isfinite().all()):
        return math.nan, math.nan
    std = float(features.std(dim=0, correction=0).square().mean().sqrt() * features.shape[1] ** 0.5)
    centred = (features - features.mean(dim=0)).double()
    tall = features.shape[1] <= len(features)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred if tall else centred @ centred.T).clamp(min=0)
    share = eigenvalues / eigenvalues.sum().clamp(min=1e-30)
    entropy = -(share * share.clamp(min=1e-30).log()).sum()
    return std, float(entropy.exp())


def warnings(history: list[Health]) -> list[str]:
    """Plain sentences about the newest check, given all checks so far (the first one is the start of the run)."""
    first, now = history[0], history[-1]
    found = []
    if now.collapsed:
        found.append(f"feature std {now.feature_std:.3f}, effective rank {now.effective_rank:.1f}: {COLLAPSE_ADVICE}")
    elif now.effective_rank < 0.25 * first.effective_rank:
        found.append(
            f"the effective rank fell from {first.effective_rank:.1f} to {now.effective_rank:.1f}: collapse may be near"
        )
    if len(history) > 2 and now.point_match < 1.5 * now.point_match_chance:
        found.append(
            f"points are matched between views at chance level ({now.point_match:.3f}, chance "
            f"{now.point_match_chance:.3f}): the features carry no position"
        )
    return found


def should_stop(history: list[Health]) -> bool:
    """Two checks in a row find collapsed features."""
    return len(history) >= 2 and history[-1].collapsed and history[-2].collapsed
