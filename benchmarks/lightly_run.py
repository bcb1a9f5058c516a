"""Pre-training with lightly's MoCo v2 or DenseCL for a given time: what `plrc pretrain` does, with another method.

lightly provides the transforms, heads, losses and memory banks (`peers.py`). Images, their order and decoding,
backbone, optimizer, schedule, momentum of the teacher, width of the heads and the clock are those of our loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from benchmarks.peers import LightlyMethod
from plrc import rng
from plrc.config import Config
from plrc.data.sampler import StepSampler
from plrc.data.sources import ImageList, find_images
from plrc.data.views import shorter_side
from plrc.engine.adapt import adapt, steps_per_epoch
from plrc.engine.budget import UNLIMITED_STEPS, TimeBudget
from plrc.engine.optim import build_optimizer
from plrc.engine.pretrain import Run
from plrc.engine.schedule import learning_rate
from plrc.errors import MissingPackageError
from plrc.files import write_atomic
from plrc.runtime import StopRequest

STRIDE = 32  # of the level that they train

Transform = Callable[[Image.Image], Any]
"""Image -> query view and key view."""


def pretrain_lightly(config: Config, dense: bool) -> Run:
    """Train until the time budget is used, and write the student's backbone; a stopped run is continued.

    Args:
        config: As for `plrc.pretrain`, with `optim.hours`. Settings of views other than the size, of regions and of our
            objectives are not used.
        dense: DenseCL instead of MoCo v2.

    Returns:
        The run; its path is the file with the weights.

    Raises:
        MissingPackageError: lightly is not installed.
    """
    try:
        from lightly.transforms.moco_transform import MoCoV2Transform  # that of DenseCL is the same
    except ImportError as error:
        raise MissingPackageError("MoCo v2 and DenseCL of lightly", "lightly") from error
    images = find_images(config.data)
    config = adapt(config, len(images))[0]
    optim = config.optim
    transform: Transform = MoCoV2Transform(input_size=config.views.size)
    method = build_method(config, dense)
    optimizer = build_optimizer(method.student, optim, {})
    budget = TimeBudget(optim)
    out = Path(config.run.out)
    checkpoint = out / "checkpoint.pt"
    step = 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        step = stored["step"]
        budget.used = stored["seconds_used"]
        optimizer.load_state_dict(stored["optimizer"])
        with torch.no_grad():
            for name, tensor in _tensors(method).items():
                tensor.copy_(stored["tensors"][name])
    sampler = StepSampler(
        num_images=len(images),
        batch_size=optim.batch_size,
        gradient_accumulation_steps=1,
        seed=config.seed,
        start=step,
        stop=UNLIMITED_STEPS,
    )
    stop = StopRequest()
    try:
        budget.start()
        for keys in sampler:
            _seed_everything(rng.torch_seed(config.seed, "crops", index=step))
            query, key = _two_views(images, config, [index for _, index in keys], transform)
            lr = learning_rate(
                optim, step, budget.expected_steps(step, 0), steps_per_epoch(len(images), optim.batch_size)
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            method.update_teacher(optim.teacher_momentum)
            method.loss(query, key).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            budget.update()
            if budget.is_over or stop.requested:
                break
    finally:
        stop.restore()
    if not budget.is_over:
        state = {
            "step": step,
            "seconds_used": budget.used,
            "optimizer": optimizer.state_dict(),
            "tensors": _tensors(method),
        }
        write_atomic(checkpoint, lambda file: torch.save(state, file))
        return Run(checkpoint, step, finished=False, health=())
    weights = out / "backbone.pt"
    backbone = method.student.backbone.net.state_dict()
    write_atomic(weights, lambda file: torch.save(backbone, file))
    return Run(weights, step, finished=True, health=())


def build_method(config: Config, dense: bool) -> LightlyMethod:
    """Build the method with the random weights that a run of plrc with this seed starts from.

    The memory banks hold the keys of as many images as our queue. The stride of layer4 is 2, as in their papers.
    """
    _seed_everything(rng.torch_seed(config.seed, "weights"))
    images = config.objectives.queue
    cells = math.ceil(config.views.size / STRIDE) ** 2
    return LightlyMethod(
        config, dense, num_keys=images, num_dense_keys=images * cells, hidden=config.model.contrast_hidden
    )


def _seed_everything(seed: int) -> None:
    """Seed what lightly draws from: the global generators of PyTorch and NumPy."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (lightly uses it)


def _tensors(method: nn.Module) -> dict[str, Tensor]:
    """Return all weights and buffers; `state_dict` would leave out the memory banks."""
    return dict(method.named_parameters()) | dict(method.named_buffers())


def _two_views(images: ImageList, config: Config, positions: list[int], transform: Transform) -> tuple[Tensor, Tensor]:
    """Return query and key views of the images at these positions, each [B, 3, S, S]."""
    queries = []
    keys = []
    for position in positions:
        pixels = images.decode(position, config.data, shorter_side(config.views))
        query, key = transform(to_pil_image(pixels))
        queries.append(query)
        keys.append(key)
    memory_format = torch.channels_last if config.optim.channels_last else torch.contiguous_format
    return (
        torch.stack(queries).contiguous(memory_format=memory_format),
        torch.stack(keys).contiguous(memory_format=memory_format),
    )
