"""What ONNX's exporter does not know by itself: our suppression within groups, and sorting that keeps equals in
order, written as expressions of ONNX's own operators."""
# No annotations are postponed here, because onnxscript reads them.
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18

import detcore.ops.nms  # noqa: F401  # defines the operator

op: Any = opset18


def grouped_nms(boxes: Any, scores: Any, groups: Any, iou_threshold: float) -> Any:
    """`detcore.ops.nms.grouped_nms`: the groups become the batch of ONNX's operator, as long as the fullest of them."""
    zero, one, minus_one = (op.Constant(value_ints=[i]) for i in (0, 1, -1))
    count = op.Shape(groups)
    rising, order = op.TopK(groups, count, axis=0, largest=0, sorted=1)
    depth = op.Max(op.Add(op.ReduceMax(op.Concat(rising, minus_one, axis=0), zero, keepdims=1), one), one)
    counts = op.ScatterElements(op.Expand(zero, depth), rising, op.Expand(one, count), axis=0, reduction="add")
    start = op.CumSum(counts, op.Constant(value_int=0), exclusive=1)
    slot = op.Sub(op.Range(op.Constant(value_int=0), op.Squeeze(count, zero), op.Constant(value_int=1)),
                  op.Gather(start, rising))
    most = op.Max(op.ReduceMax(counts, zero, keepdims=1), one)
    place = op.Concat(op.Unsqueeze(rising, one), op.Unsqueeze(slot, one), axis=1)
    grid = op.Concat(depth, most, axis=0)
    empty = op.Expand(op.Constant(value_floats=[0.0]), op.Concat(grid, op.Constant(value_ints=[4]), axis=0))
    table = op.ScatterND(empty, place, op.Gather(boxes, order))
    worth = op.ScatterND(op.Expand(op.Constant(value_floats=[-2.0]), grid), place, op.Gather(scores, order))
    picked = op.NonMaxSuppression(table, op.Unsqueeze(worth, one), op.Constant(value_ints=[2**31 - 1]),
                                  op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[-1.0]))
    group, index = op.Gather(picked, zero, axis=1), op.Gather(picked, op.Constant(value_ints=[2]), axis=1)
    kept = op.Gather(order, op.Reshape(op.Add(op.GatherND(start, group), op.Squeeze(index, one)), minus_one))
    # By number, then by falling score: the best first, of equals the first.
    kept, _ = op.TopK(kept, op.Shape(kept), largest=0, sorted=1)
    _, best = op.TopK(op.Gather(scores, kept), op.Shape(kept), sorted=1)
    return op.Gather(kept, best)


def stable_sort(x: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    """`torch.sort`: ONNX's best k of all, of which equals keep their order."""
    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.detcore.grouped_nms.default: grouped_nms, torch.ops.aten.sort.stable: stable_sort}
