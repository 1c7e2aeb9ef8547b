"""Operators of this library in ONNX's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

from cellvision.ops import nms  # noqa: F401  registers the operator

op: Any = opset18  # its annotations know no tensors whose kind is found while tracing

EVERY_BOX = 2**31 - 1
NO_BOX = -0.5  # absent boxes have score -1


def keep_best(boxes: Any, scores: Any, classes: Any, iou: float) -> Any:
    """``cellvision.ops.nms.keep_best`` by ONNX's own suppression: batch by batch and class by class, sizes free."""
    last = op.ReduceMax(classes, keepdims=0)
    numbers = op.Range(op.Constant(value_int=0), op.Add(last, op.Constant(value_int=1)), op.Constant(value_int=1))
    axis = op.Constant(value_ints=[1])
    is_of_class = op.Equal(op.Unsqueeze(classes, axis), op.Unsqueeze(numbers, axis))
    by_class = op.Where(is_of_class, op.Unsqueeze(scores, axis), op.Constant(value_float=-1.0))
    chosen = op.NonMaxSuppression(
        boxes,
        by_class,
        op.Constant(value_ints=[EVERY_BOX]),
        op.Constant(value_floats=[iou]),
        op.Constant(value_floats=[NO_BOX]),
    )
    at = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(at, start=0, end=1))
    return op.Cast(op.ScatterND(op.Expand(op.Constant(value_float=0.0), op.Shape(scores)), at, ones), to=9)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.cellvision.keep_best.default: keep_best}
