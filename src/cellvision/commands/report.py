"""``cellvision report``: the nets of several compression runs by accuracy and time, and which of them are worth having.

What it does is loaded when it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from cellvision.errors import ConfigError, DataError, explain

if TYPE_CHECKING:
    from cellvision.report.pareto import Sweep
    from cellvision.report.record import CompressionReport

PICTURE = "pareto.png"


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="compression runs, or folders of several")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {PICTURE}")


def run_report(chosen: argparse.Namespace) -> int:
    """Compare the nets of compression runs, such as those of a sweep: a table, and a picture with the Pareto front.

    A RUN is a folder with a compression.json somewhere in it. Times of runs that began with the same net are compared
    by their ratio to it.
    """
    from cellvision.report.pareto import collect_points, draw_pareto
    from cellvision.runtime.files.writers import StagedFiles

    if chosen.out is not None and (chosen.out / PICTURE).exists():
        got = f"--out {chosen.out} holds the {PICTURE} of another report"
        raise ConfigError(explain(got=got, need="a folder for each", hint="another --out, or remove it"))
    reports = load_reports(chosen.runs)
    _print_sweep(collect_points(reports))
    if chosen.out is not None:
        with StagedFiles(chosen.out) as staged:
            draw_pareto(reports, staged.path(PICTURE))
        print(f"picture {chosen.out / PICTURE}")
    return 0


def load_reports(runs: list[Path]) -> dict[str, CompressionReport]:
    """The reports below these folders by the shortest names that tell them apart, in the order of their paths.

    Raises:
        DataError: a folder without a report, or one that cannot be read.
    """
    from cellvision.report.record import RECORD_NAME, load_report

    paths: list[Path] = []
    for run in runs:
        found = sorted(run.rglob(RECORD_NAME)) if run.is_dir() else [run]
        if not found:
            got = f"{run} holds no {RECORD_NAME}"
            raise DataError(explain(got=got, need="a compression run that has ended", hint="python compress.py ..."))
        paths += found
    paths = list({path.resolve(): path for path in paths})
    names = [f"{name} ({own})" if own else name for name, own in zip(_name(paths), _list_swept(paths), strict=True)]
    return dict(zip(names, map(load_report, paths), strict=True))


def _name(paths: list[Path]) -> list[str]:
    """What is left of the folders' paths without the beginning and the end that all share."""
    parts = [path.parent.parts for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    while len({each[:1] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    while len({each[-1:] for each in parts}) == 1:
        parts = [each[:-1] for each in parts]
    return ["/".join(each) or "." for each in parts]


def _list_swept(paths: list[Path]) -> list[str]:
    """Of each report of a Hydra sweep, whose folders are mere numbers, the settings that not all have; else ""."""
    folders = [path.parent.parent for path in paths]
    if len(paths) == 1 or not all((folder.parent / "multirun.yaml").is_file() for folder in folders):
        return [""] * len(paths)
    files = [folder / ".hydra" / "overrides.yaml" for folder in folders]
    settings = [yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else [] for file in files]
    shared = set.intersection(*map(set, settings))
    return [", ".join(word.removeprefix("compress.") for word in each if word not in shared) for each in settings]


def _print_sweep(sweep: Sweep) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cellvision.commands.lines import to_line
    from cellvision.report.lines import count_threads

    unit = "times the uncompressed net's" if sweep.is_relative else "ms"
    table = Table("run", "net", box=SIMPLE_HEAD)
    table.columns[0].overflow = table.columns[1].overflow = "fold"  # names cut short would read as others
    for heading in (sweep.headline.words, f"time, {count_threads(sweep.threads)}, {unit}", "no other beats it"):
        table.add_column(heading, justify="right")
    for point in sorted(sweep.points, key=lambda point: point.time):
        row = (f"{point.score:.3f}", f"{point.time:.3f}", "yes" if point in sweep.front else "")
        table.add_row(Text(to_line(point.run)), Text(to_line(point.row)), *row)
    Console().print(table)
