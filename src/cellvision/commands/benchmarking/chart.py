"""What ``cellvision benchmark`` found, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellvision.commands.benchmark import Benchmark
from cellvision.commands.lines import to_line


def draw_benchmark(benchmark: Benchmark, path: Path) -> None:
    """A PNG with time and memory of every bundle, by threads and batch, and the size of its files."""
    names = list(benchmark.manifests)
    cases = list(dict.fromkeys((row.threads, row.batch) for row in benchmark.rows))
    found = {(row.bundle, row.threads, row.batch): row for row in benchmark.rows}
    figure = Figure(figsize=(5 + 2.5 * len(cases), 9), layout="constrained")
    times, memory, size = figure.subplots(3, 1)
    labels = [f"{threads} threads, batch {batch}" for threads, batch in cases]
    for at, name in enumerate(names):
        rows = [found.get((name, *case)) for case in cases]
        p50 = [row.latency.p50_ms if row else 0.0 for row in rows]
        above = [row.latency.p95_ms - row.latency.p50_ms if row else 0.0 for row in rows]
        _add_bars(times, at, len(names), p50, label=to_line(name), above=above)
        peaks = [row.memory.peak_mib if row and row.memory else 0.0 for row in rows]
        _add_bars(memory, at, len(names), peaks, label=to_line(name))
    bars = size.bar(range(len(names)), [benchmark.find_size(name) / 1e6 for name in names], width=0.5)
    for bar, colour in zip(bars, (f"C{at % 10}" for at in range(len(names))), strict=True):
        bar.set_color(colour)
    size.bar_label(bars, fmt="%.2f", fontsize=8)
    size.set_xticks(range(len(names)), [_escape(to_line(name)) for name in names])
    for axes in (times, memory):
        axes.set_xticks(range(len(cases)), labels)
    height, width = benchmark.inputs.size
    times.set_title(f"median time of a batch of {height} x {width} px; line: 95 % of the runs")
    times.set_ylabel("ms")
    memory.set_ylabel("peak memory, MiB")
    size.set_ylabel("files, MB")
    times.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=120)


def _add_bars(
    axes: Axes, at: int, of: int, values: Sequence[float], *, label: str, above: Sequence[float] | None = None
) -> None:
    width = 0.8 / of
    places = [case + (at - (of - 1) / 2) * width for case in range(len(values))]
    error = None if above is None else [[0.0] * len(values), list(above)]
    bars = axes.bar(
        places, values, width=0.95 * width, color=f"C{at % 10}", label=_escape(label), yerr=error, capsize=3
    )
    axes.bar_label(bars, fmt="%.4g", fontsize=8, label_type="center")


def _escape(label: str) -> str:
    """The text with nothing that a picture would take for a formula, or for a name that is not to be shown."""
    return f" {label}".replace("$", r"\$")
