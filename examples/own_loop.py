"""The three objectives in a loop of your own: any network that gives a grid of features will do.

    python examples/own_loop.py            # seconds on a CPU

A student looks at view A of each picture, a momentum teacher at view C. Here both show the same random picture with
different noise, so a point lies at the same place in both, and C also serves as view B of the distillation.
"""

import copy

import torch
from torch.nn import Conv2d, ReLU, Sequential
from torch.nn.functional import interpolate, normalize

from plrc.geometry import cell_centers, look_up, sample
from plrc.objectives import affinity_distillation, image_contrast, point_region_contrast


def main(steps: int = 60, images: int = 8, points: int = 64) -> list[float]:
    torch.manual_seed(0)
    student = Sequential(Conv2d(3, 32, 3, 2, 1), ReLU(), Conv2d(32, 64, 3, 2, 1), ReLU(), Conv2d(64, 32, 1))
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    queue = normalize(torch.randn(256, 32), dim=1)  # image keys of past steps
    grid = torch.arange(16).view(1, 4, 4) + 16 * torch.arange(images).view(-1, 1, 1)  # 4 x 4 regions in each picture
    losses = []
    for _ in range(steps):
        picture = interpolate(torch.rand(images, 3, 8, 8), size=32, mode="bilinear")
        a, c = (net(picture + 0.05 * torch.randn_like(picture)) for net in (student, teacher))  # [B, D, 8, 8]
        where = torch.rand(images, points, 2)  # (x, y) in [0, 1]
        regions = look_up(grid, where).flatten()
        query, key, reference = (
            normalize(sample(features, at), dim=-1)  # [B, N, D]
            for features, at in ((a, where), (c, where), (c, cell_centers(8, 8).expand(images, -1, -1)))
        )
        image_query, image_key = (normalize(features.mean(dim=(2, 3)), dim=1) for features in (a, c))
        loss = 0.3 * image_contrast(image_query, image_key, queue)
        loss = loss + point_region_contrast(query.flatten(0, 1), key.flatten(0, 1), regions, regions)
        loss = loss + affinity_distillation(query, key, reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([image_key, queue[:-images]])
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        losses.append(loss.item())
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    return losses


if __name__ == "__main__":
    main()
