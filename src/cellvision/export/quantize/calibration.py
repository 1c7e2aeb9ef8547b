"""Ranges of a graph's activations on real images: what the integer scales are made from."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.calibrate import HistogramCollector

from cellvision.errors import ConfigError, ExportError, check_choice, explain
from cellvision.export.onnx import INPUT_NAME
from cellvision.export.parity.comparison import to_dtype
from cellvision.types import Sample

if TYPE_CHECKING:
    from cellvision.data.datamodule import CellDataModule

Feed = Mapping[str, np.ndarray]
"""One run's input: every input of the graph by its name."""

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
BINS = {"entropy": 1024, "percentile": 4096}
QUANTIZED_BINS = 128
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def build_feeds(images: Sequence[np.ndarray], *, dtype: str, tile_px: int = 512, most: int = 32) -> list[Feed]:
    """Tiles of raw fields as inputs of an image graph, spread evenly over all fields.

    Args:
        images: (C, H, W) raw counts each, of any size; smaller fields than a tile are taken whole.
        dtype: of the graph's input.
        tile_px: largest height and width, as the runtime cuts them.
        most: number of tiles, at most.

    Raises:
        ConfigError: no image, or ``most`` or ``tile_px`` below 1.

    Example:
        >>> feeds = build_feeds([np.zeros((2, 90, 40), np.uint16)], dtype="float32", tile_px=64)
        >>> [feed["image"].shape for feed in feeds]
        [(1, 2, 64, 40), (1, 2, 26, 40)]
    """
    if not images or most < 1 or tile_px < 1:
        raise ConfigError(
            explain(
                got=f"{len(images)} images, {most} tiles of {tile_px} px for calibration",
                need="at least one of each",
                hint="pass 8 or more training fields",
            )
        )
    places = [
        (index, top, left)
        for index, image in enumerate(images)
        for top in range(0, image.shape[1], tile_px)
        for left in range(0, image.shape[2], tile_px)
    ]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))
    tiles: list[Feed] = []
    for index, top, left in (places[i] for i in chosen):
        tile = images[index][:, top : top + tile_px, left : left + tile_px]
        tiles.append({INPUT_NAME: to_dtype(tile, dtype)[None]})
    return tiles


def collect_training_fields(data: CellDataModule, count: int) -> list[Sample]:
    """Up to ``count`` training fields, spread over all, with the net's channels only.

    Training fields, not held-out ones: accuracy is measured on those, and what is fitted to them would flatter it.
    """
    view = data.views["train"]
    chosen = np.unique(np.linspace(0, len(view) - 1, min(count, len(view))).round().astype(int))
    samples = [view.sample(int(i)) for i in chosen]
    return [replace(sample, image=sample.image[data.channel_positions]) for sample in samples]


def measure_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Sequence[Feed],
    *,
    method: str = "minmax",
    symmetric: bool = False,
    percentile: float = 99.99,
    memory_mib: float = 512.0,
    tell: Callable[[str], None] | None = None,
) -> TensorsData:
    """Lowest and highest value of every tensor, as ``onnxruntime.quantization`` takes them.

    "entropy" and "percentile" cut rare extremes off: they need a second run over the feeds for histograms, which are
    taken over the range of *all* feeds. (ONNX Runtime's own calibrators bin the first image's range and grow from
    there: after a dark first field their search takes hours; and their default of 128 bins cuts nothing off.)

    Args:
        model: a float graph.
        tensors: names of float activations in it.
        feeds: inputs, run one at a time.
        method: one of METHODS.
        symmetric: around zero, for signed integers with zero point 0.
        percentile: share of the values kept, in percent; for "percentile".
        memory_mib: feature maps held at once; more tensors than fit are taken in several passes.
        tell: called with a line on the progress.

    Raises:
        ConfigError: unknown method, no feed, or a percentile outside (50, 100].
        ExportError: values that are not finite.
    """
    check_choice("calibration method", method, METHODS)
    if not feeds or not 50.0 < percentile <= 100.0:
        raise ConfigError(
            explain(
                got=f"{len(feeds)} calibration images, percentile={percentile}",
                need="at least one image and a percentile above 50 up to 100",
                hint="percentile=99.99",
            )
        )
    ends = _find_ends(model, tensors, feeds, memory_mib, tell)
    if method != "minmax":
        ends = _cut(model, ends, feeds, method, symmetric, percentile, memory_mib, tell)
    if symmetric:
        ends = {name: (-max(map(abs, pair)), max(map(abs, pair))) for name, pair in ends.items()}
    ranges = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ends.items()
    }
    return TensorsData(METHODS[method], ranges)


def tap(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Sequence[Feed],
    *,
    memory_mib: float = 512.0,
    tell: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, str, np.ndarray]]:
    """(number of the feed, tensor name, its value) for every feed and tensor; ``memory_mib`` of values at once."""
    groups = _group(model, tensors, feeds[0], memory_mib * 2**20)
    for number, group in enumerate(groups):
        session = _open(model, group)
        for index, feed in enumerate(feeds):
            yield from ((index, name, value) for name, value in zip(group, session.run(group, dict(feed)), strict=True))
            if tell is not None:
                done = number * len(feeds) + index + 1
                tell(f"calibration: {done} of {len(groups) * len(feeds)} runs")


def _find_ends(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Sequence[Feed],
    memory_mib: float,
    tell: Callable[[str], None] | None,
) -> dict[str, tuple[float, float]]:
    ends: dict[str, tuple[float, float]] = {}
    for _, name, values in tap(model, tensors, feeds, memory_mib=memory_mib, tell=tell):
        if not values.size:
            continue
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ExportError(
                explain(
                    got=f"tensor {name!r} has values that are not finite on a calibration image",
                    need="finite activations",
                    hint="look for NaN in the images and in the net's weights",
                )
            )
        before = ends.get(name, (low, high))
        ends[name] = (min(before[0], low), max(before[1], high))
    return ends


def _cut(
    model: onnx.ModelProto,
    ends: Mapping[str, tuple[float, float]],
    feeds: Sequence[Feed],
    method: str,
    symmetric: bool,
    percentile: float,
    memory_mib: float,
    tell: Callable[[str], None] | None,
) -> dict[str, tuple[float, float]]:
    """Ranges without rare extremes, found by ONNX Runtime's collector in histograms of a fixed range."""
    collector = HistogramCollector(method, symmetric, BINS[method], QUANTIZED_BINS, percentile, "same")
    magnitudes = method == "percentile" and symmetric
    for _, name, values in tap(model, list(ends), feeds, memory_mib=memory_mib, tell=tell):
        top = max(map(abs, ends[name])) or 1.0
        span = (0.0 if magnitudes else -top, top)
        counts, edges = np.histogram(np.abs(values) if magnitudes else values, BINS[method], range=span)
        if name in collector.histogram_dict:
            counts = counts + collector.histogram_dict[name][0]
        low, high = (np.float32(end) for end in ends[name])
        collector.histogram_dict[name] = (counts, edges.astype(np.float32), low, high, np.float32(top))
    with contextlib.redirect_stdout(io.StringIO()):  # the collector prints
        found = collector.compute_collection_result()
    return {name: (float(values[0]), float(values[1])) for name, values in found.items()}


def _group(model: onnx.ModelProto, tensors: Sequence[str], feed: Feed, limit: float) -> list[list[str]]:
    """The tensors in groups of at most ``limit`` bytes each, by their sizes on one feed."""
    if limit == float("inf"):
        return [list(tensors)]
    counted = onnx.ModelProto()
    counted.CopyFrom(model)
    sizes = [f"{name}:size" for name in tensors]
    for name, size in zip(tensors, sizes, strict=True):
        counted.graph.node.append(onnx.helper.make_node("Size", [name], [size]))
        counted.graph.output.append(onnx.helper.make_tensor_value_info(size, onnx.TensorProto.INT64, []))
    counts = _open(counted, []).run(sizes, dict(feed))
    groups: list[list[str]] = []
    held = 0.0
    for name, count in zip(tensors, counts, strict=True):
        if not groups or held + 4.0 * int(count) > limit:
            groups.append([])
            held = 0.0
        groups[-1].append(name)
        held += 4.0 * int(count)
    return groups


def _open(model: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session that gives ``tensors`` besides the graph's outputs."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    present = {value.name for value in tapped.graph.output}
    types = {value.name: value for value in (*tapped.graph.value_info, *tapped.graph.input)}
    for name in tensors:
        if name not in present:
            tapped.graph.output.append(types.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
