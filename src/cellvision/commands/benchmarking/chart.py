"""What ``cellvision benchmark`` found, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellvision.commands.benchmark import Benchmark
from cellvision.commands.lines import to_line
from cellvision.metrics.cost.timing import describe_machine


def draw_benchmark(benchmark: Benchmark, path: Path) -> None:
    """A PNG with time and memory of every bundle, by threads and batch, and the size of its files."""
    names = list(benchmark.manifests)
    cases = list(dict.fromkeys((row.threads, row.batch) for row in benchmark.rows))
    found = {(row.bundle, row.threads, row.batch): row for row in benchmark.rows}
    figure = Figure(figsize=(max(7.0, 2 + 1.0 * len(cases) * len(names)), 9), layout="constrained")
    times, memory, size = figure.subplots(3, 1)
    for at, name in enumerate(names):
        rows = [found.get((name, *case)) for case in cases]
        p50 = [row.latency.p50_ms if row else 0.0 for row in rows]
        above = [row.latency.p95_ms - row.latency.p50_ms if row else 0.0 for row in rows]
        _add_bars(times, at, len(names), p50, label=to_line(name), above=above)
        peaks = [row.memory.peak_mib if row and row.memory else 0.0 for row in rows]
        _add_bars(memory, at, len(names), peaks, label=to_line(name))
        _add_bars(size, at, len(names), [benchmark.find_size(name) / 1e6], label=to_line(name))
    labels = [f"{threads} thread{'s' * (threads > 1)}, batch of {batch}" for threads, batch in cases]
    for axes in (times, memory):
        axes.set_xticks(range(len(cases)), labels)
    size.set_xticks([])
    height, width = benchmark.inputs.size
    machine = describe_machine()
    _describe(times, f"Time of a batch of {height} x {width} px: median, and line to 95 % of the runs", "ms")
    _describe(memory, "Peak memory of a process that runs such a batch", "MiB")
    _describe(size, "Size of the graphs", "MB")
    figure.suptitle(_escape(f"{machine['processor']}, {machine['cores']} cores"), fontsize=10)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(names)), fontsize=9)
    figure.savefig(path, format="png", dpi=120)


def _add_bars(
    axes: Axes,
    at: int,
    of: int,
    values: Sequence[float],
    *,
    label: str,
    above: Sequence[float] | None = None,
) -> None:
    width = 0.8 / of
    places = [case + (at - (of - 1) / 2) * width for case in range(len(values))]
    error = None if above is None else [[0.0] * len(values), list(above)]
    bars = axes.bar(
        places, values, width=0.95 * width, color=f"C{at % 10}", label=_escape(label), yerr=error, capsize=3
    )
    axes.bar_label(bars, fmt="%.4g", fontsize=8, padding=2)


def _describe(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _escape(label: str) -> str:
    """The text with nothing that a picture would take for a formula, or for a name that is not to be shown."""
    return f" {label}".replace("$", r"\$")
