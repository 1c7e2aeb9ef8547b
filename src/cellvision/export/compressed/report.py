"""The report of a compression run: its nets in bundles, measured side by side, in a table, pictures and files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cellvision.bundle import Manifest, load_manifest
from cellvision.checks import check_count
from cellvision.errors import ConfigError, ExportError, explain
from cellvision.export.compressed.measure import choose_case, measure_bundles
from cellvision.export.compressed.rows import Row, describe_net, find_source, make_bundles
from cellvision.export.compressed.verdict import find_fault, find_warnings
from cellvision.export.gate.decision import TOLERANCE_POINTS, check_tolerance
from cellvision.export.graph_options import GraphOptions
from cellvision.export.parity.comparison import cut
from cellvision.export.progress import Tell, say_nothing
from cellvision.git_state import describe_git
from cellvision.metrics.accuracy import choose_shown
from cellvision.metrics.cost.timing import describe_machine
from cellvision.report.files import write_report
from cellvision.report.record import CompressionReport, ReportRow
from cellvision.report.table import print_report
from cellvision.training.checkpoint import load_net
from cellvision.training.record import collect_versions
from cellvision.types import Sample

RUNS = 15


def report_compression(
    rows: Sequence[Row],
    folder: Path,
    *,
    samples: Sequence[Sample],
    fields: Sequence[Sample] = (),
    tolerance_points: float = TOLERANCE_POINTS,
    base: str = "base",
    rounds: int = 4,
    threads: Sequence[int] = (),
    runs: int = RUNS,
    options: GraphOptions | None = None,
    command: str | None = None,
    tell: Tell = say_nothing,
) -> CompressionReport:
    """Measure all rows in one run, print the table, and write the files of `cellvision.report.files.FILES`.

    A run whose last step loses too much is reported like any other; `CompressionReport.raise_if_lost`, called
    afterwards, makes an error of it.

    Args:
        rows: of `list_rows`: the steps in their order, and what is shown beside them.
        folder: where the files go, and a bundle of each row in ``folder/NAME``.
        samples: held-out fields with true cells and the nets' channels; the first one's size is timed, up to 512 px.
        fields: of the training split, with true cells, by which static rows are rounded.
        tolerance_points: most points that the last step may lose against the base in any headline.
        base: name of the row of the uncompressed net.
        rounds: of the search for layers of static rows that stay in float, from 0 up.
        threads: numbers of processor threads to time with; none takes 1 and all cores.
        runs: of each row that count, for times.
        options: of the graphs.
        command: that made the report; None for this process's.
        tell: called with lines on the progress.

    Raises:
        ConfigError: rows that do not make a report, or nets of different classes; a number out of range.
        ExportError: there is no true cell, or a graph disagrees with its net.
        DataError, BundleError: a checkpoint or bundle cannot be used.
    """
    _check(samples, tolerance_points=tolerance_points, runs=runs, rounds=rounds)
    rows = _order(rows, base)
    numbers = tuple(sorted({*threads} or {1, describe_machine()["cores"]}))
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {"fields": fields, "tolerance_points": tolerance_points, "rounds": rounds}
    bundles = make_bundles(rows, folder, samples=samples, **given, options=options, tell=tell)
    manifest = _check_alike(bundles, base)
    size, batch = choose_case(samples)
    report = CompressionReport(
        rows=_measure(rows, bundles, samples, size=size, threads=numbers, runs=runs, tell=tell),
        headlines=choose_shown(manifest.kind, manifest.classes),
        tolerance_points=tolerance_points,
        fields=len(samples),
        size=size,
        threads=numbers,
        batch=batch,
        runs=runs,
        **_describe_origin(command),
    )
    report = replace(report, fault=find_fault(report), warnings=find_warnings(report))
    print_report(report)
    write_report(report, folder)
    return report


def _describe_origin(command: str | None) -> dict[str, Any]:
    """What made the report, as arguments of it."""
    return {
        "command": shlex.join(sys.orig_argv) if command is None else command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": collect_versions(),
        "git": describe_git(),
    }


def _check(samples: Sequence[Sample], *, tolerance_points: float, runs: int, rounds: int) -> None:
    check_tolerance(tolerance_points)
    check_count("runs", runs, example=5)
    check_count("rounds", rounds, low=0, example=4)
    check_samples(samples)


def check_samples(samples: Sequence[Sample]) -> None:
    """Raise ExportError where no sample has a true cell."""
    if not any(len(sample.cell_classes) for sample in samples):
        got = f"{len(samples)} held-out fields without a cell"
        raise ExportError(explain(got=got, need="true cells to measure accuracy by", hint="report.samples=20"))


def _measure(
    rows: Sequence[Row],
    bundles: Mapping[str, Path],
    samples: Sequence[Sample],
    *,
    size: tuple[int, int],
    threads: Sequence[int],
    runs: int,
    tell: Tell,
) -> tuple[ReportRow, ...]:
    found = measure_bundles(
        {row.name: bundles[row.name] for row in rows}, samples, threads=threads, runs=runs, tell=tell
    )
    image = torch.from_numpy(cut(samples[0].image, *size))[None]
    earlier = len(load_net(rows[0].checkpoint)[1].recipe)
    made = []
    for row in rows:
        tell(f"parameters and multiplications of {row.name}")
        made.append(
            ReportRow(
                name=row.name,
                role=row.role,
                before=_find_before(row, rows, {name: each.precision for name, each in found.items()}),
                bundle=row.name,
                **vars(describe_net(row.checkpoint, image, earlier=earlier)),
                **vars(found[row.name]),
            )
        )
    return tuple(made)


def _order(rows: Sequence[Row], base: str) -> list[Row]:
    """The base, the other steps, what lies beside them.

    Raises:
        ConfigError: no base, no step behind it, or a name twice.
    """
    names = [row.name for row in rows]
    steps = [row for row in rows if row.role == "step"]
    first = [row for row in steps if row.name == base]
    if len(set(names)) < len(names) or not first or len(steps) < 2:
        need = f"a step {base!r}, another step, and no name twice"
        raise ConfigError(explain(got=f"rows {', '.join(names) or 'none'}", need=need, hint="list_rows(run, base=...)"))
    return first + [row for row in steps if row.name != base] + [row for row in rows if row.role != "step"]


def _find_before(row: Row, rows: Sequence[Row], precisions: Mapping[str, str]) -> str | None:
    """The row that a row is compared with: see `ReportRow`."""
    steps = [each.name for each in rows if each.role == "step"]
    if row.role == "static":
        return find_source(row, rows).name
    if row.role == "scratch":
        return [name for name in steps if precisions[name] == precisions[row.name]][-1]
    return dict(zip(steps[1:], steps, strict=False)).get(row.name)


def _check_alike(bundles: Mapping[str, Path], base: str) -> Manifest:
    """The base's manifest; ConfigError where other nets have other classes."""
    manifests = {name: load_manifest(folder) for name, folder in bundles.items()}
    if len({found.classes for found in manifests.values()}) > 1:
        got = "; ".join(f"{name} has {', '.join(found.classes)}" for name, found in manifests.items())
        raise ConfigError(explain(got=got, need="nets of the same classes", hint="checkpoints of one data set"))
    return manifests[base]
