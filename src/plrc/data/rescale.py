"""Numbers of any type as pixels of 8 bits."""

from __future__ import annotations

import numpy as np

RESCALE_PERCENTILES = (0.5, 99.5)
FILL_REMARK = "images with a fill value far from all others (no data), which does not count when they are rescaled"

_BLOCK = 2**20  # values that are rescaled at a time
_FILL_SHARE = 0.005  # share of the values from which an extreme one may be a fill value
_FILL_DISTANCE = 2.0  # a fill value is further from the others than this many times their range


def rescale(
    values: np.ndarray,
    percentiles: tuple[float, float],
    no_data: float | None = None,
    remarks: list[str] | None = None,
) -> np.ndarray:
    """Map numbers of any type linearly to 0 ... 255.

    Args:
        values: Numbers of any shape.
        percentiles: The values at these percentiles become 0 and 255, values beyond are clipped. If both are equal, the
            smallest and the largest value take their place. A fill value (the smallest or largest value, frequent and
            far from all others, as geographic images have it outside of their area) does not count.
        no_data: This value does not count either, and becomes 0.
        remarks: Takes FILL_REMARK if a value does not count.

    Returns:
        uint8 of the same shape. Constant arrays and NaN become 0.
    """
    out = np.zeros(values.size, np.uint8)
    flat = values.reshape(-1)
    finite = flat[np.isfinite(flat)] if values.dtype.kind == "f" else flat
    counted = finite
    if no_data is not None and np.isfinite(no_data):
        counted = finite[finite != no_data]
    counted = _without_fill(counted, percentiles)
    if remarks is not None and counted.size < finite.size:
        remarks.append(FILL_REMARK)
    if counted.size == 0:
        return out.reshape(values.shape)
    low, high = (float(bound) for bound in np.percentile(counted, percentiles))
    if low >= high:
        low = float(counted.min())
        high = float(counted.max())
    if low >= high:
        return out.reshape(values.shape)
    for start in range(0, flat.size, _BLOCK):  # in double precision, a whole large image would fill the memory
        block = flat[start : start + _BLOCK].astype(np.float64)
        clipped = np.clip(np.nan_to_num(block, nan=low, posinf=high, neginf=low), low, high)
        out[start : start + _BLOCK] = (clipped - low) / (high - low) * 255 + 0.5
    if no_data is not None:
        out[flat == no_data] = 0
    return out.reshape(values.shape)


def _without_fill(values: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Finite values without a fill value at either end."""
    if values.size == 0:
        return values
    low, high = np.percentile(values, percentiles)
    for bound, extreme in ((low, values.min()), (high, values.max())):
        if bound != extreme:  # too rare to decide the scale
            continue
        rest = values[values != extreme]
        if rest.size == 0 or rest.size > (1 - _FILL_SHARE) * values.size:
            continue
        smallest = float(rest.min())
        largest = float(rest.max())
        distance = max(smallest - float(extreme), float(extreme) - largest)
        if distance > _FILL_DISTANCE * (largest - smallest) > 0:
            return _without_fill(rest, percentiles)
    return values
