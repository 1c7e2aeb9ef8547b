"""Which layers suffer from 8 bits, found by measurement, and a file that keeps the worst of them in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cellvision.errors import ConfigError, explain
from cellvision.export.quantize.calibration import Feed, tap
from cellvision.export.quantize.nodes import WEIGHTED, find_heads
from cellvision.export.quantize.static import Quantizer, QuantizeReport

RANKED = (*WEIGHTED, "Add", "Mul", "Concat", "Sigmoid", "AveragePool", "GlobalAveragePool")
"""Operators with a rounding of their own; pooling and resizing hand on the scale of their input."""

SHARE_PER_ROUND = 8


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What one node alone costs.

    Attributes:
        layer: name of the node.
        op: its operator.
        error: root mean square change of the last layers' outputs when only this node is quantised, as a share of
            their standard deviation; the mean over the last layers.
        kept: whether the written file keeps it in float.
    """

    layer: str
    op: str
    error: float
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """How a file within a tolerance was looked for.

    Attributes:
        sensitivities: worst first; empty where the fully quantised file was good enough.
        losses: in points, one per file measured, in the order tried.
        loss: of the written file, in points.
        met: whether it is within the tolerance.
        tolerance: in points.
        quantized: report of the written file.
    """

    sensitivities: tuple[Sensitivity, ...]
    losses: tuple[float, ...]
    loss: float
    met: bool
    tolerance: float
    quantized: QuantizeReport

    def to_record(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return asdict(self)


def rank_nodes(
    quantizer: Quantizer, *, feeds: Sequence[Feed], tell: Callable[[str], None] | None = None
) -> list[Sensitivity]:
    """Every node with a rounding of its own, worst first, each quantised alone in the float graph.

    Alone, because in a fully quantised graph the error at a layer is mostly that of the layers before it. Compared at
    the outputs of the last layers, which are continuous: behind them TopK and suppression jump.

    Args:
        quantizer: with measured ranges.
        feeds: inputs to compare on; two or three do, of 256 px for a quick answer.
        tell: called with a line on the progress.
    """
    heads = find_heads(quantizer.model)
    types = {node.name: node.op_type for node in quantizer.model.graph.node}
    names = [name for name in quantizer.nodes if types[name] in RANKED]
    of_float = {(index, head): values for index, head, values in _run(quantizer, heads, feeds, None)}
    found = []
    for number, name in enumerate(names, start=1):
        differences = [
            _difference(values, of_float[(index, head)]) for index, head, values in _run(quantizer, heads, feeds, name)
        ]
        found.append(Sensitivity(layer=name, op=types[name], error=float(np.mean(differences))))
        if tell is not None:
            tell(f"sensitivity: {number} of {len(names)} nodes")
    return sorted(found, key=lambda one: -one.error)


def quantize_within(
    quantizer: Quantizer,
    out: Path,
    *,
    measure: Callable[[Path], float],
    tolerance: float,
    rounds: int = 4,
    feeds: Sequence[Feed] | None = None,
    keep_float: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> SearchReport:
    """Write an 8 bit file to ``out`` that loses at most ``tolerance``, with as much of it quantised as that allows.

    The fully quantised file is tried first. Each further round keeps another eighth of the ranked nodes in float,
    the worst first, for as long as a layer is left to quantise. Where no round meets the tolerance, the file that loses
    least is written.

    Args:
        quantizer: of the float graph.
        out: file to write.
        measure: loss of a file against the float graph in points; called once a round.
        tolerance: largest loss in points.
        rounds: of further tries, 0 or more.
        feeds: inputs for the ranking; None for the first two of the calibration.
        keep_float: names or patterns of nodes that stay float in any case.
        tell: called with a line on the progress.

    Raises:
        ConfigError: negative rounds, or a tolerance that is no number.
        ExportError: see ``Quantizer.write``.
    """
    if rounds < 0 or math.isnan(tolerance):
        got = f"rounds={rounds}, tolerance={tolerance}"
        raise ConfigError(explain(got=got, need="rounds from 0 up and a number of points", hint="rounds=4"))
    ranked: list[Sensitivity] = []
    tried: list[tuple[float, list[str]]] = []
    for number in range(rounds + 1):
        if number == 1:
            ranked = rank_nodes(quantizer, feeds=quantizer.feeds[:2] if feeds is None else feeds, tell=tell)
        count = math.ceil(len(ranked) / SHARE_PER_ROUND) * number
        kept = [one.layer for one in ranked[:count]]
        if number and not _find_quantized(quantizer, [*keep_float, *kept]):
            break
        report = quantizer.write(out, keep_float=[*keep_float, *kept])
        tried.append((measure(out), kept))
        if tell is not None:
            tell(f"round {number}: {len(kept)} nodes kept in float, loss {tried[-1][0]:.3g} points")
        if tried[-1][0] <= tolerance:
            break
    loss, kept = min(tried, key=lambda one: math.inf if math.isnan(one[0]) else one[0])
    if kept != tried[-1][1]:
        report = quantizer.write(out, keep_float=[*keep_float, *kept])
    return SearchReport(
        sensitivities=tuple(replace(one, kept=one.layer in kept) for one in ranked),
        losses=tuple(value for value, _ in tried),
        loss=loss,
        met=loss <= tolerance,
        tolerance=tolerance,
        quantized=report,
    )


def draw_sensitivities(sensitivities: Sequence[Sensitivity], path: Path, *, most: int = 40) -> Path:
    """``path``, now a PNG with one bar for each of the ``most`` worst nodes; those kept in float in another colour."""
    shown = list(sensitivities[:most])
    figure = Figure(figsize=(8, 1.2 + 0.2 * len(shown)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:orange" if one.kept else "tab:blue" for one in shown]
    axes.barh(range(len(shown)), [one.error for one in shown], color=colours)
    axes.set_yticks(range(len(shown)), [f"{one.layer} ({one.op})" for one in shown], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("change of the last layers when quantised alone, share of their standard deviation")
    axes.set_title("orange: kept in float", fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def _find_quantized(quantizer: Quantizer, keep_float: Sequence[str]) -> list[str]:
    """Layers with weights that do not stay float."""
    return [name for name in quantizer.layers if not any(fnmatchcase(name, pattern) for pattern in keep_float)]


def _run(
    quantizer: Quantizer, heads: Sequence[str], feeds: Sequence[Feed], name: str | None
) -> list[tuple[int, str, np.ndarray]]:
    model = quantizer.model if name is None else quantizer.build([name])
    return list(tap(model, heads, feeds, memory_mib=math.inf))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    spread = float(expected.std())
    return float(np.sqrt(np.mean((found - expected) ** 2))) / (spread or 1.0)
