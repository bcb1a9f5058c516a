"""The three objectives in a training loop of your own, for any network that gives a grid of features.

    python examples/own_loop.py            # seconds on a CPU

A student sees view A of each picture, a momentum teacher sees view C. Here both views show the whole random picture,
with different noise, so a point lies at the same place in both, and C also serves as view B of the distillation.

Shapes: B images, N points, D = 32 features, Q queue entries.
"""

import copy

import torch
from torch.nn import Conv2d, ReLU, Sequential
from torch.nn.functional import interpolate, normalize

from plrc.geometry import cell_centers, look_up, sample
from plrc.objectives import affinity_distillation, image_contrast, point_region_contrast


def main(steps: int = 60, images: int = 8, points: int = 64) -> list[float]:
    """Train and return the loss of each step.

    Args:
        steps: Optimizer steps.
        images: B, pictures per step.
        points: N, points per picture.
    """
    torch.manual_seed(0)
    student = Sequential(Conv2d(3, 32, 3, 2, 1), ReLU(), Conv2d(32, 64, 3, 2, 1), ReLU(), Conv2d(64, 32, 1))
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    queue = normalize(torch.randn(256, 32), dim=1)  # [Q, D] image keys of past steps
    reference_points = cell_centers(8, 8).expand(images, -1, -1)  # [B, 64, 2]
    # Each picture has 4 x 4 regions. Their ids are unique over the batch: [B, 4, 4].
    region_ids = torch.arange(16).view(1, 4, 4) + 16 * torch.arange(images).view(-1, 1, 1)
    losses = []
    for _ in range(steps):
        picture = interpolate(torch.rand(images, 3, 8, 8), size=32, mode="bilinear")
        features_a = student(picture + 0.05 * torch.randn_like(picture))  # [B, D, 8, 8]
        features_c = teacher(picture + 0.05 * torch.randn_like(picture))
        where = torch.rand(images, points, 2)  # (x, y) in [0, 1]
        regions = look_up(region_ids, where).flatten()  # [B * N]
        query = normalize(sample(features_a, where), dim=-1)  # [B, N, D]
        key = normalize(sample(features_c, where), dim=-1)
        reference = normalize(sample(features_c, reference_points), dim=-1)  # [B, 64, D]
        image_query = normalize(features_a.mean(dim=(2, 3)), dim=1)  # [B, D]
        image_key = normalize(features_c.mean(dim=(2, 3)), dim=1)
        loss = 0.3 * image_contrast(image_query, image_key, queue)
        loss = loss + point_region_contrast(query.flatten(0, 1), key.flatten(0, 1), regions, regions)
        loss = loss + affinity_distillation(query, key, reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([image_key, queue[:-images]])
        with torch.no_grad():
            for of_teacher, of_student in zip(teacher.parameters(), student.parameters(), strict=True):
                of_teacher.lerp_(of_student, 0.05)
        losses.append(loss.item())
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    return losses


if __name__ == "__main__":
    main()
