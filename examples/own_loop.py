"""The three objectives in a loop of your own: any network that gives a feature lattice will do.

    python examples/own_loop.py            # about ten seconds on a CPU

A student looks at view A of each image, a momentum teacher at view C (the reference). Here both views are the same
random images with different noise, so that the same position shows the same thing.
"""

import copy

import torch
from torch.nn import functional as F

from plrc.geometry import lattice, look_up, sample
from plrc.objectives import affinity_distillation, image_contrast, point_region_contrast


def main(steps: int = 30, images: int = 8, points: int = 64) -> list[float]:
    torch.manual_seed(0)
    student = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, 2, 1), torch.nn.ReLU(),
        torch.nn.Conv2d(64, 32, 1),
    )  # fmt: skip
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    queue = F.normalize(torch.randn(256, 32), dim=1)
    grid = torch.arange(16).view(1, 4, 4).expand(images, 4, 4)  # regions: a 4 x 4 grid, ids 0..15 in each image
    losses = []
    for step in range(steps):
        scene = F.interpolate(torch.rand(images, 3, 8, 8), size=32, mode="bilinear")
        a, c = (student(scene + 0.05 * torch.randn_like(scene)), teacher(scene + 0.05 * torch.randn_like(scene)))
        where = torch.rand(images, points, 2)  # (x, y) in [0, 1]; the views show the whole image: one frame for all
        regions = look_up(grid, where) + 16 * torch.arange(images)[:, None]  # ids unique over the batch
        query, key = F.normalize(sample(a, where), dim=-1), F.normalize(sample(c, where), dim=-1)
        reference = F.normalize(sample(c, lattice(8, 8).expand(images, -1, -1)), dim=-1)
        image_query, image_key = (F.normalize(x.mean(dim=(2, 3)), dim=1) for x in (a, c))
        loss = (
            0.3 * image_contrast(image_query, image_key, queue)
            + point_region_contrast(query.flatten(0, 1), key.flatten(0, 1), regions.flatten(), regions.flatten())
            + affinity_distillation(query, key, reference)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 0.05)
            queue = torch.cat([image_key, queue[:-images]])
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
