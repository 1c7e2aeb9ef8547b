"""The honest baseline: a net of the same family, evenly narrower, as fast as the compressed one, trained on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.errors import ConfigError, explain
from cellvision.export.latency_probe import open_graph
from cellvision.export.progress import Tell, say_nothing
from cellvision.metrics.cost.timing import time_in_turns
from cellvision.models.base import SegNet
from cellvision.models.build import build_model
from cellvision.models.structure.restore import restore_structure
from cellvision.models.structure.widths import read_widths

TOLERANCE = 0.05
"""How far apart two nets may be that count as equally fast."""

MAX_RATIO = 0.97


class NoSuchWidthError(ConfigError):
    """No width that was tried makes a net as fast as the compressed one."""


@dataclass(frozen=True, kw_only=True)
class SmallTrial:
    """A width that was tried.

    Attributes:
        ratio: share of the channels of every prunable layer that was left out.
        times: so many times as long as the compressed net.
    """

    ratio: float
    times: float


@dataclass(frozen=True, kw_only=True)
class SmallNet:
    """A narrower net that is as fast as a compressed one.

    Attributes:
        record: {"step": "prune", "widths", "groups", "ratio"}, what `start_fresh` makes the net from, and what its
            checkpoint's recipe holds.
        times: so many times as long as the compressed net.
        trials: all, in order.
    """

    record: dict[str, Any]
    times: float
    trials: tuple[SmallTrial, ...]


def shrink_to_latency(
    config: Mapping[str, Any],
    recipe: Sequence[Mapping[str, Any]],
    image: Tensor,
    *,
    cells: int | None = None,
    tolerance: float = TOLERANCE,
    trials: int = 10,
    threads: int = 1,
    runs: int = 15,
    tell: Tell = say_nothing,
) -> SmallNet:
    """The evenly narrower net of a family whose fp32 graph takes as long as a compressed net's.

    Every prunable layer loses the same share of its channels, which is searched for. A time in ms of another minute
    is worth little on a machine that does other work, so each candidate takes turns with the compressed net. Both have
    fresh weights, for times depend on widths and not on weights, and draw as many masks as each other.

    Args:
        config: of the uncompressed net.
        recipe: of the compressed net's record; what it says of rounding is left out.
        image: (1, C, H, W) raw counts, of the size that is timed.
        cells: that the compressed net finds in it, for an instance net; see `open_graph`.
        tolerance: largest difference of the two times that counts as none, as a share.
        trials: widths to measure at most.
        threads: of the processor.
        runs: of each that count.
        tell: called with lines on the progress.

    Raises:
        NoSuchWidthError: no width comes as near, because layers that keep their channels take too long, because time
            moves by jumps, or because other work on the machine does.
        DataError: the recipe does not fit the configuration.
        ExportError: a net has no graph.
    """
    config = dict(config)
    steps = [step for step in recipe if step["step"] != "quantize"]
    reference = open_graph(start_fresh(config, _join(config, steps)), image, threads=threads, cells=cells)
    tried: dict[float, float] = {}
    records: dict[float, dict[str, Any]] = {}
    low, high = 0.0, MAX_RATIO
    while len(tried) < trials and not any(abs(times - 1) <= tolerance for times in tried.values()):
        ratio = _choose(tried, low, high)
        records[ratio] = narrow(config, image, ratio)
        candidate = open_graph(start_fresh(config, records[ratio]), image, threads=threads, cells=cells)
        tried[ratio] = _compare(candidate, reference, runs)
        tell(f"small net: {tried[ratio]:.3f} times as long with {1 - ratio:.1%} of the channels")
        low, high = (ratio, high) if tried[ratio] > 1 else (low, ratio)
    best = min(tried, key=lambda ratio: abs(math.log(tried[ratio])))
    if abs(tried[best] - 1) > tolerance:
        got = f"the nearest of {len(tried)} widths takes {tried[best]:.3f} times as long as the compressed net"
        hint = "resume=auto on a machine without other work, or report.scratch=false report.ptq=[base]"
        raise NoSuchWidthError(explain(got=got, need=f"1 within {tolerance:g}", hint=hint))
    found = tuple(SmallTrial(ratio=ratio, times=times) for ratio, times in tried.items())
    return SmallNet(record=records[best], times=tried[best], trials=found)


def narrow(config: Mapping[str, Any], image: Tensor, ratio: float) -> dict[str, Any]:
    """The record of a net without a share of the channels of every prunable layer.

    Args:
        config: of the whole net.
        image: (1, C, H, W) raw counts, for tracing.
        ratio: the share, in (0, 1).

    Raises:
        ConfigError: nothing can be pruned.
    """
    options = PruneOptions(scope="local", ratio=ratio, max_ratio=max(ratio, 0.9))
    with torch.random.fork_rng(devices=[]):
        net, whole = build_model(**config), build_model(**config)
    Pruner(net, image, options).step()
    return {"step": "prune", **read_widths(net, whole), "ratio": ratio}


def start_fresh(config: Mapping[str, Any], record: Mapping[str, Any], *, seed: int = 0) -> SegNet:
    """A net of a record's widths with fresh weights, as its own constructor would have drawn them at these widths.

    The net is built whole, while initialisers that scale by the number of a layer's inputs or outputs are told those
    of the narrow layer; of every tensor as much is kept as the narrow net has. All numbers of a tensor are drawn alike,
    so it does not matter which; constants, such as the bias that makes cells rare at first, stay what the net sets.
    Plain ``reset_parameters`` of the layers would undo all such choices.

    Args:
        config: of the whole net.
        record: with "widths" and "groups", of `narrow` or of a pruned net.
        seed: of the weights.

    Raises:
        DataError: the record does not fit the configuration.

    Example:
        >>> config = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(8, 16)).config
        >>> record = narrow(config, torch.zeros(1, 1, 32, 32), 0.5)
        >>> sum(p.numel() for p in start_fresh(config, record).parameters())
        1590
    """
    shapes = record["widths"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _watch_fans([]) as seen:
            net = build_model(**config)
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        torch.manual_seed(seed)
        with _watch_fans([shapes.get(names.get(id(tensor))) for tensor in seen]):
            wide = build_model(**config).state_dict()
    restore_structure(net, [{"step": "prune", **record}])
    net.load_state_dict(
        {name: wide[name][tuple(map(slice, value.shape))].clone() for name, value in net.state_dict().items()}
    )
    return net


@contextmanager
def _watch_fans(shapes: Sequence[Sequence[int] | None]) -> Iterator[list[Tensor]]:
    """The tensors whose fans initialisers ask for, in order; the n-th is said to be of the n-th shape that there is."""
    seen: list[Tensor] = []
    count = nn.init._calculate_fan_in_and_fan_out

    def answer(tensor: Tensor) -> tuple[int, int]:
        shape = shapes[len(seen)] if len(seen) < len(shapes) else None
        seen.append(tensor)
        return count(tensor if shape is None else torch.empty(tuple(shape), device="meta"))

    nn.init._calculate_fan_in_and_fan_out = answer
    try:
        yield seen
    finally:
        nn.init._calculate_fan_in_and_fan_out = count


def _join(config: Mapping[str, Any], recipe: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The widths behind all steps of a recipe, in one record."""
    with torch.random.fork_rng(devices=[]):
        net, whole = build_model(**config), build_model(**config)
    restore_structure(net, recipe)
    return read_widths(net, whole)


def _choose(tried: Mapping[float, float], low: float, high: float) -> float:
    """The next ratio: between those that are too slow and too fast, where a line between their times meets 1."""
    if low in tried and high in tried:
        above, below = math.log(tried[low]), math.log(tried[high])
        share = above / (above - below)
        return low + (high - low) * min(max(share, 0.1), 0.9)
    return (low + high) / 2


def _compare(candidate: Callable[[], object], reference: Callable[[], object], runs: int) -> float:
    """Median over the rounds of the candidate's time over the reference's."""
    times = time_in_turns({"reference": reference, "candidate": candidate}, runs=runs)
    return float(np.median(np.divide(times["candidate"], times["reference"])))
