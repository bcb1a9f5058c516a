"""The objectives as slow float64 loops over plain lists, straight from the formulas of METHOD section 3.

Each returns (mean cross-entropy, its gradient by the query as nested lists, mean entropy of the target, valid queries).

Shapes: B images, N queries, M keys, D features.
"""

from __future__ import annotations

import math

Vector = list[float]
Matrix = list[Vector]
Result = tuple[float, list, float, int]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(logits: Vector) -> Vector:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def ace(query: Vector, keys: Matrix, target: Vector, temperature: float) -> tuple[float, Vector, float]:
    """- sum_j T_j log P_j, its gradient (1 / tau) (sum_j P_j k_j - sum_j T_j k_j), the entropy of T; for one query."""
    student = softmax([dot(query, key) / temperature for key in keys])
    loss = -sum(t * math.log(p) for t, p in zip(target, student, strict=True) if t > 0)
    gradient = [
        sum((p - t) * key[d] for p, t, key in zip(student, target, keys, strict=True)) / temperature
        for d in range(len(query))
    ]
    return loss, gradient, -sum(t * math.log(t) for t in target if t > 0)


def image(query: Matrix, key: Matrix, queue: Matrix, temperature: float) -> Result:
    """query [B, D], key [B, D], queue [K, D]: a one-hot target on the own key, before the queue."""
    rows = [ace(q, [k, *queue], [1.0] + [0.0] * len(queue), temperature) for q, k in zip(query, key, strict=True)]
    return _mean(rows)


def points(query: Matrix, keys: Matrix, query_ids: list[int], key_ids: list[int], temperature: float) -> Result:
    """query [N, D], keys [M, D]: a uniform target on the keys with the query's id; None for a query without any."""
    rows: list[tuple[float, Vector, float] | None] = []
    for q, own in zip(query, query_ids, strict=True):
        same = [own != -1 and own == other for other in key_ids]
        rows.append(ace(q, keys, [s / sum(same) for s in same], temperature) if any(same) else None)
    return _mean(rows, width=len(query[0]))


def region(query: Matrix, keys: Matrix, ids: list[int], temperature: float) -> float:
    """query, keys [N, D] as the head gives them, ids [N] of both: DetCon's loss, the mean over regions of the
    cross-entropy of the region's mean against those of all regions."""
    regions = sorted(set(ids))

    def pooled(features: Matrix, own: int) -> Vector:
        mine = [f for f, i in zip(features, ids, strict=True) if i == own]
        mean = [sum(f[d] for f in mine) / len(mine) for d in range(len(mine[0]))]
        return [x / math.sqrt(dot(mean, mean)) for x in mean]

    means = [pooled(keys, r) for r in regions]
    losses = [ace(pooled(query, r), means, [float(r == other) for other in regions], temperature)[0] for r in regions]
    return sum(losses) / len(losses)


def distillation(
    student: list[Matrix],
    teacher: list[Matrix],
    reference: list[Matrix],
    student_temperature: float,
    teacher_temperature: float,
    center: Vector | None = None,
    valid: list[list[bool]] | None = None,
) -> Result:
    """student and teacher [B, N, D], reference [B, M, D]: T_i = softmax_j((t_i . k_j - c_j) / teacher_temperature)."""
    rows: list[tuple[float, Vector, float] | None] = []
    for b, keys in enumerate(reference):
        shift = center or [0.0] * len(keys)
        for i, (s, t) in enumerate(zip(student[b], teacher[b], strict=True)):
            target = softmax([(dot(t, k) - c) / teacher_temperature for k, c in zip(keys, shift, strict=True)])
            rows.append(ace(s, keys, target, student_temperature) if valid is None or valid[b][i] else None)
    loss, gradient, entropy, count = _mean(rows, width=len(student[0][0]))
    size = len(student[0])
    return loss, [gradient[i : i + size] for i in range(0, len(gradient), size)], entropy, count


def mean_affinity(teacher: list[Matrix], reference: list[Matrix], valid: list[list[bool]]) -> tuple[Vector, int]:
    """Mean over all valid queries of t_i . k_j, for each position j of the reference grid."""
    affinities = [
        [dot(t, k) for k in reference[b]]
        for b, image_points in enumerate(teacher)
        for i, t in enumerate(image_points)
        if valid[b][i]
    ]
    count = len(affinities)
    return [sum(column) / count for column in zip(*affinities, strict=True)], count


def _mean(rows: list[tuple[float, Vector, float] | None], width: int = 0) -> Result:
    kept = [row for row in rows if row is not None]
    count = max(len(kept), 1)
    gradient = [[0.0] * width if row is None else [g / count for g in row[1]] for row in rows]
    return sum(r[0] for r in kept) / count, gradient, sum(r[2] for r in kept) / count, len(kept)
