"""The operators of `batched` in ONNX. Needs the package onnxscript once a function is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations(opset: Any) -> dict[Any, Callable[..., Any]]:
    """Return operator -> its translation for `torch.onnx.export`.

    Args:
        opset: The operators of onnxscript, such as `onnxscript.opset18`.
    """
    int64 = 7  # types of ONNX
    boolean = 9

    def grouped_nms(boxes: Any, scores: Any, iou: float, above: float) -> Any:
        """`batched.grouped_nms`: ONNX suppresses in all groups at once and lists [group, 0, place] of what is left."""
        every_box = opset.Gather(opset.Shape(scores), opset.Constant(value_ints=[1]))
        selected = opset.NonMaxSuppression(
            boxes,
            opset.Unsqueeze(scores, opset.Constant(value_ints=[1])),
            every_box,
            opset.Constant(value_floats=[iou]),
            opset.Constant(value_floats=[above]),
        )
        places = opset.Gather(selected, opset.Constant(value_ints=[0, 2]), axis=1)
        ones = opset.Expand(
            opset.Constant(value_ints=[1]), opset.Gather(opset.Shape(selected), opset.Constant(value_ints=[0]))
        )
        zeros = opset.Expand(opset.Constant(value_ints=[0]), opset.Shape(scores))
        return opset.Cast(opset.ScatterND(zeros, places, ones), to=boolean)

    def align_regions(
        features: Any, boxes: Any, images: Any, chosen: Any, scale: float, side: int, samples: int
    ) -> Any:
        """`batched.align_regions`: pool the chosen regions, and put them among zeros."""
        rows = opset.Transpose(opset.NonZero(chosen))  # [r, 1]
        places = opset.Squeeze(rows, opset.Constant(value_ints=[1]))
        pooled = opset.RoiAlign(
            features,
            opset.Gather(boxes, places),
            opset.Cast(opset.Gather(images, places), to=int64),
            coordinate_transformation_mode="output_half_pixel",
            output_height=side,
            output_width=side,
            sampling_ratio=samples,
            spatial_scale=scale,
        )
        shape = opset.Concat(
            opset.Shape(images),
            opset.Gather(opset.Shape(features), opset.Constant(value_ints=[1])),
            opset.Constant(value_ints=[side, side]),
            axis=0,
        )
        return opset.ScatterND(opset.Expand(opset.Constant(value_floats=[0.0]), shape), rows, pooled)

    return {
        torch.ops.plrc.grouped_nms.default: grouped_nms,
        torch.ops.plrc.align_regions.default: align_regions,
    }
