"""Student and teachers, and the forward pass from a batch to the loss terms.

A batch holds one to three views of each image (METHOD section 2). The student sees A, the query view. Its moving
average sees B, the match view, and C, the reference view. A frozen teacher sees the whole image. The forward pass
augments the views, runs the networks, and lets each level compute its terms (level.py). The loop is in pretrain.py.

Shapes: V views, B images, R processes, S the side of a view, D features, h x w feature cells.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plrc import distributed, objectives, rng
from plrc.config import Config
from plrc.data import photometric
from plrc.data.loader import Batch
from plrc.data.views import MATCH, QUERY, REFERENCE
from plrc.engine.level import FrozenFeatures, HeadFeatures, Level, LevelOutput, read_frozen
from plrc.model import FrozenTeacher, Network, check_feature_side, make_teacher
from plrc.model.network import HEADS, Features
from plrc.objectives import TERMS, Term
from plrc.objectives.terms import mean_over_levels, valid_counts
from plrc.runtime import choose_precision


@dataclass(frozen=True)
class StepOutput:
    """The result of the forward pass of a micro-batch.

    Attributes:
        terms: The loss terms by name, each the mean over the levels.
        levels: The output of each level, which updates its queue and center.
    """

    terms: dict[str, Term]
    levels: tuple[LevelOutput, ...]


class Learner:
    """Student and teachers, and the forward pass from a batch to the loss terms.

    Args:
        config: The settings of the run.
        device: Where it is trained.
        frozen: The frozen teacher; None: the settings want none.

    Attributes:
        student: The network that is trained.
        teacher: Its momentum copy.
        frozen: The frozen teacher.
        levels: The feature levels that are trained, from fine to coarse.
        weights: The weight of each term that is computed.
        precision: The dtype in which networks compute; objectives are always float32 or wider.
        memory_format: The memory layout of images and networks.
    """

    def __init__(self, config: Config, device: torch.device, frozen: FrozenTeacher | None = None) -> None:
        self.config = config
        self.device = device
        self.frozen = frozen
        all_weights = {name: float(getattr(config.objectives, term.weight_setting)) for name, term in TERMS.items()}
        if frozen is None:
            all_weights["frozen"] = 0.0
        self.weights = {name: weight for name, weight in all_weights.items() if weight > 0}
        self.precision = choose_precision(config.optim.precision, device)

        torch.manual_seed(rng.torch_seed(config.seed, "weights"))
        student = Network(
            config.model,
            contrast="image" in self.weights or "point" in self.weights,
            distill="distill" in self.weights,
            frozen_dim=frozen.dim if frozen is not None else 0,
            in_channels=config.data.channels,
        )
        check_feature_side(student, config.model, config.views.size)
        student.backbone.pixels = config.data.pixels
        self.memory_format = torch.contiguous_format
        if config.optim.channels_last and not (device.type == "cpu" and _has_faulty_convolution(student)):
            self.memory_format = torch.channels_last
        self.student: Network = student.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.teacher = make_teacher(self.student)
        self.levels = [Level(config, index, self.weights, device) for index in range(len(config.model.strides))]

    def compute_terms(
        self, batch: Batch, student: Callable[..., Features], order: Tensor, teacher_temperature: float
    ) -> StepOutput:
        """Run student and teachers on a micro-batch and compute the loss terms.

        Args:
            batch: The views of B images.
            student: The student as `wrapped_student` returns it.
            order: [R * B] a permutation of the images of all processes. The moving average sees the images in this
                order, so that its BatchNorm groups differ from the student's.
            teacher_temperature: The temperature of the teachers' affinities at this step.
        """
        contrasts_pixels = self.config.objectives.contrasts_pixels
        views = self.augment(batch)
        reference: Features = {}
        match: Features = {}
        frozen: FrozenFeatures | None = None
        with self._autocast():
            with torch.no_grad():
                heads: tuple[str, ...]
                if self.config.needs_reference_view:
                    heads = HEADS if self.config.teacher.form == "relational" else ("contrast", "distill")
                    reference = self._teacher_forward(views[REFERENCE], order, heads)
                if self.config.objectives.needs_match_view:
                    heads = ("contrast", "distill") if contrasts_pixels else ("distill",)
                    match = self._teacher_forward(views[MATCH], order, heads)
                if self.frozen is not None:
                    whole = self.frozen.features(batch.teacher)
                    frozen = read_frozen(whole, batch, self.config, teacher_temperature)
            query = student(views[QUERY], self.config.model.bn_groups)

        outputs = []
        for level in self.levels:
            output = level.compute_terms(
                batch,
                _of_level(query, level.stride),
                _of_level(reference, level.stride),
                _of_level(match, level.stride),
                frozen,
                teacher_temperature,
            )
            outputs.append(output)
        return StepOutput(mean_over_levels([output.terms for output in outputs]), tuple(outputs))

    def augment(self, batch: Batch) -> Tensor:
        """Augment uint8 views [V, B, 3, S, S] into normalized float views of the same shape."""
        views = photometric.augment_views(
            batch.images, batch.color_uniform, self.config.views, self.student.backbone.pixels
        )
        joined = views.flatten(0, 1).contiguous(memory_format=self.memory_format)
        laid_out: Tensor = joined.unflatten(0, batch.images.shape[:2])
        return laid_out

    def total_loss(self, terms: dict[str, Term]) -> Tensor:
        """Add up the terms by their weights.

        Returns:
            A scalar: this process's share of the loss, times the number of processes, because DDP averages gradients.
        """
        counts = distributed.sum_over_processes(valid_counts(terms))
        return objectives.total_loss(terms, self.weights, counts) * distributed.world_size()

    def update_queue_and_center(self, outputs: Sequence[StepOutput], keep: Tensor) -> None:
        """Update the queue and the center of each level.

        Args:
            outputs: The outputs of the step's micro-batches.
            keep: 0-dim bool, whether the step is kept. If False, queues and centers stay as they are; the host does not
                wait for the value.
        """
        for index, level in enumerate(self.levels):
            level.update([output.levels[index] for output in outputs], keep)

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
        stops_early = self.config.model.largest_stride < max(self.student.backbone.channels)
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

    def key_counts(self) -> dict[str, list[int]]:
        """Return the number of keys that each query of a term is compared with, one number per level."""
        frozen_side = self.frozen.side if self.frozen is not None else 0
        counts: dict[str, list[int]] = {}
        for level in self.levels:
            for name, count in level.key_counts(frozen_side).items():
                counts.setdefault(name, []).append(count)
        return counts

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that a checkpoint holds, by name."""
        modules: dict[str, nn.Module] = {"student": self.student, "teacher": self.teacher}
        queues = {str(level.stride): level.queue for level in self.levels if level.queue is not None}
        if queues:
            modules["queue"] = nn.ModuleDict(queues)
        return modules

    def centers(self) -> dict[str, Tensor] | None:
        """Return the center of each level by its stride; None if centers are not used."""
        centers = {str(level.stride): level.center for level in self.levels if level.center is not None}
        return centers or None

    def _teacher_forward(self, images: Tensor, order: Tensor, heads: Collection[str]) -> Features:
        """Run the moving average on a view whose images are shuffled over BatchNorm groups and processes.

        Features are returned in the order of `images`.
        """
        groups = self.config.model.bn_groups
        if distributed.world_size() == 1 and groups == 1:  # a single BatchNorm group: its order does not matter
            features: Features = self.teacher(images, 1, heads)
            return features
        shuffled = distributed.shuffle(images, order).contiguous(memory_format=self.memory_format)
        features = self.teacher(shuffled, groups, heads)
        return {name: distributed.unshuffle(value, order) for name, value in features.items()}

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)


def _has_faulty_convolution(network: nn.Module) -> bool:
    """Return whether PyTorch may crash in the backward pass of a network on a CPU, with the channels last.

    The gradient of a 1 x 1 convolution with a stride that reads fewer than 8 channels, such as one in FastViT's stem,
    is written beyond its memory (PyTorch 2.15 on processors with AVX2).
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    strided = [conv for conv in convolutions if conv.kernel_size == (1, 1) and conv.stride != (1, 1)]
    return any(conv.in_channels < 8 for conv in strided)


def _of_level(features: Features, stride: int) -> HeadFeatures:
    return {name: value for (name, level_stride), value in features.items() if level_stride == stride}
