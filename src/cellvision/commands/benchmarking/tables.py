"""What ``cellvision benchmark`` found, as tables on stdout."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellvision.commands.benchmark import Benchmark, count_fields
from cellvision.commands.lines import to_line
from cellvision.metrics.accuracy import Headline, choose_headlines
from cellvision.metrics.cost.timing import describe_machine

MOST_OPERATORS = 15
TIMES = "times first: median over the rounds, in which all take turns, of times the first bundle's time"


def print_benchmark(benchmark: Benchmark) -> None:
    """Print the bundles, their times and, where it was asked for, their operators."""
    console = Console()
    machine = describe_machine()
    height, width = benchmark.inputs.size
    number = len(benchmark.inputs.images)
    what = f"{number} image{'s' * (number > 1)}" if number else "random counts"
    console.print(f"{height}x{width} px, {what}, on {machine['processor']}, {machine['cores']} cores", markup=False)
    _print_bundles(console, benchmark)
    _print_times(console, benchmark)
    for name in benchmark.profiles:
        _print_operators(console, benchmark, name)


def _print_bundles(console: Console, benchmark: Benchmark) -> None:
    headlines: dict[str, Headline] = {}
    for manifest in benchmark.manifests.values():
        headlines |= {one.score: one for one in choose_headlines(manifest.kind, manifest.classes)}
    words = (one.words if one.points > 1 else f"{one.words}, points" for one in headlines.values())
    table = Table("bundle", "form", "size MB", *words, "accuracy from", box=SIMPLE_HEAD)
    for name, manifest in benchmark.manifests.items():
        graph, scores = manifest.graphs[0], benchmark.accuracy[name]
        form = graph.precision if graph.engine == "onnx" else f"{graph.precision} {graph.engine}"
        origin = _describe_origin(benchmark.measured_on.get(name), count_fields(manifest)) if scores else ""
        table.add_row(
            Text(to_line(name)),
            f"{form}, parted" if manifest.is_parted else form,
            f"{benchmark.find_size(name) / 1e6:.2f}",
            *(_show_score(scores.get(score)) for score in headlines),
            origin,
        )
    console.print(table)


def _describe_origin(measured: int | None, recorded: int | None) -> str:
    """Where scores are from: scores of other fields are not to be compared with these."""
    if measured is not None:
        return f"{measured} field{'s' * (measured > 1)}"
    return "manifest" if recorded is None else f"manifest, {recorded} field{'s' * (recorded > 1)}"


def _print_times(console: Console, benchmark: Benchmark) -> None:
    table = Table(box=SIMPLE_HEAD, caption=TIMES, caption_justify="left")
    table.add_column("bundle", overflow="fold", min_width=8)
    for heading in ("threads", "batch", "p50\nms", "p95\nms", "images\n/s", "Mpx\n/s", "times\nfirst", "peak\nMiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in benchmark.rows:
        found = row.latency
        table.add_row(
            Text(to_line(row.bundle)),
            str(row.threads),
            str(row.batch),
            *(_show(value) for value in (found.p50_ms, found.p95_ms, found.images_per_s, found.mpx_per_s)),
            f"{found.ratio:.3f}",
            "" if row.memory is None else f"{row.memory.peak_mib:.0f}",
        )
    console.print(table)


def _print_operators(console: Console, benchmark: Benchmark, name: str) -> None:
    rows = benchmark.profiles[name]
    table = Table("operators", title=Text(to_line(name)), box=SIMPLE_HEAD)
    for heading in ("number", "ms", "share"):
        table.add_column(heading, justify="right")
    for row in rows[:MOST_OPERATORS]:
        op = f"{row.op} ({row.graph})" if row.graph else row.op
        table.add_row(Text(to_line(op)), str(row.nodes), f"{row.ms:.3f}", f"{row.share:.1%}")
    if rest := rows[MOST_OPERATORS:]:
        total_ms, share = sum(row.ms for row in rest), sum(row.share for row in rest)
        table.add_row(f"{len(rest)} others", str(sum(row.nodes for row in rest)), f"{total_ms:.3f}", f"{share:.1%}")
    console.print(table)


def _show(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _show_score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"
