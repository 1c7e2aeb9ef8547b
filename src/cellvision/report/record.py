"""A compression run in numbers: one row per net, read from and written to ``compression.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cellvision.errors import DataError, ExportError, explain, read_first_line
from cellvision.metrics.accuracy import Headline
from cellvision.metrics.cost.timing import Latency

FORMAT = 1
RECORD_NAME = "compression.json"

Role = Literal["step", "static", "scratch"]
ROLES: tuple[Role, ...] = get_args(Role)
"""A phase of the run, the uncompressed net being the first; a net rounded after training; a small net on its own."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long the graphs of a row take.

    Attributes:
        threads: of the processor.
        batch: images at once.
        latency: its ``ratio`` is to the first row.
        times_ms: one per round; all rows took turns in each, so that those of one round can be compared.
    """

    threads: int
    batch: int
    latency: Latency
    times_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One net of a compression run, as its bundle was measured.

    Attributes:
        name: of the row.
        role: one of ROLES.
        before: the row that it is compared with as a step: the one it was made from, or for "scratch" the compressed
            one that is as fast; None for the first.
        checkpoint: its path, and its SHA-256.
        bundle: folder with its graphs, from the report's.
        model: registry name.
        steps: of compression that the net has behind it.
        precision: "fp32" or "int8".
        parameters: numbers that are trained.
        macs: multiplications for one image of the report's size; with weights that are zero too.
        size_bytes: of all graphs.
        cells: found in all fields.
        accuracy: see `Accuracy.compute`.
        timings: one per number of threads with one image, and one with all threads and the report's batch.
        peak_mib: memory of a process that opens it and runs one image; None where the system does not tell.
        zeros: share of the checkpoint's weights of convolutions and linear layers that are exactly 0, in 0..1.
        rounded_only: whether a step rounded it and no training after that was needed, or better.
        asked_ms: latency that its pruning in this run had to meet; None where another target was set.
        reached_ms: what the run measured behind the last cut.
    """

    name: str
    role: Role
    before: str | None
    checkpoint: str
    checkpoint_sha256: str
    bundle: str
    model: str
    steps: tuple[str, ...]
    precision: str
    parameters: int
    macs: int
    size_bytes: int
    cells: int
    accuracy: Mapping[str, float]
    timings: tuple[Timing, ...]
    peak_mib: float | None
    zeros: float = 0.0
    rounded_only: bool = False
    asked_ms: float | None = None
    reached_ms: float | None = None

    def find_timing(self, threads: int, batch: int = 1) -> Timing:
        """Of a number of threads and images that was measured."""
        return next(each for each in self.timings if (each.threads, each.batch) == (threads, batch))

    def find_latency(self, threads: int, batch: int = 1) -> Latency:
        """The same, in short."""
        return self.find_timing(threads, batch).latency


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one row in another.

    Attributes:
        size, parameters, macs: so many times as much; below 1 is less.
        memory: the same of the peak memory; None where unknown.
        latency: {threads: so many times as long for one image}, the median over the rounds.
        throughput: so many times as many images per second, the same.
        lost_points: of each headline, below 0 where points are won; NaN where only one side has the score.
    """

    size: float
    parameters: float
    macs: float
    memory: float | None
    latency: Mapping[int, float]
    throughput: float
    lost_points: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """All rows, and what is to be said of them.

    Attributes:
        rows: the uncompressed net first, then the other steps in order, then the rest.
        headlines: scores to show, the most telling one first; most of them decide, see `Headline`.
        tolerance_points: most points that the last step may lose against the first row.
        fault: a sentence where it loses more; else "".
        warnings: sentences on what is not as one would wish.
        fields: number that accuracy was measured on.
        size: (H, W) px of the images that were timed.
        threads: numbers of processor threads, rising.
        batch: images at once for the throughput.
        runs: that count, of each time.
        command: that made the report.
        created: time in UTC, ISO 8601.
        machine, versions, git: where, with what and from which code.
    """

    rows: tuple[ReportRow, ...]
    headlines: tuple[Headline, ...]
    tolerance_points: float
    fault: str = ""
    warnings: tuple[str, ...] = ()
    fields: int
    size: tuple[int, int]
    threads: tuple[int, ...]
    batch: int
    runs: int
    command: str = ""
    created: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> ReportRow:
        """The uncompressed net."""
        return self.rows[0]

    @property
    def deciding(self) -> tuple[Headline, ...]:
        """The scores that the tolerance is of."""
        return tuple(one for one in self.headlines if one.decides)

    @property
    def final(self) -> ReportRow:
        """What the run made at last."""
        return [row for row in self.rows if row.role == "step"][-1]

    def find(self, name: str) -> ReportRow:
        """The row of a name that there is."""
        return next(row for row in self.rows if row.name == name)

    def compare(self, row: ReportRow, other: ReportRow) -> Change:
        """What became of ``other`` in ``row``."""
        none = float("nan")
        is_known = row.peak_mib is not None and other.peak_mib is not None
        busiest = (self.threads[-1], self.batch)
        return Change(
            size=row.size_bytes / other.size_bytes,
            parameters=row.parameters / other.parameters,
            macs=row.macs / other.macs,
            memory=row.peak_mib / other.peak_mib if is_known else None,  # type: ignore[operator]
            latency={number: _divide_times(row, other, number, 1) for number in self.threads},
            throughput=1 / _divide_times(row, other, *busiest),
            lost_points={
                one.score: one.lose(other.accuracy.get(one.score, none), row.accuracy.get(one.score, none))
                for one in self.headlines
                if one.score in row.accuracy or one.score in other.accuracy
            },
        )

    def raise_if_lost(self) -> None:
        """Raise ExportError with the sentence where the last step loses more than the tolerance."""
        if self.fault:
            raise ExportError(self.fault)

    def to_record(self) -> dict[str, Any]:
        """Plain data for a JSON file, with what follows from it beside each row; no number in it is NaN."""
        rows = []
        for row in self.rows:
            before = None if row.before is None else self.compare(row, self.find(row.before))
            found = {"against_base": self.compare(row, self.base), "against_before": before}
            rows.append(asdict(row) | {name: each and asdict(each) for name, each in found.items()})
        plain = {**vars(self), "headlines": [asdict(each) for each in self.headlines], "rows": rows}
        return {"format": FORMAT, "passed": not self.fault, "final": self.final.name, **_to_plain(plain)}


def write_record(report: CompressionReport, path: Path) -> None:
    """Write what `load_report` reads."""
    text = json.dumps(report.to_record(), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_report(path: Path) -> CompressionReport:
    """The report of a JSON file, or of a folder that holds one.

    Raises:
        DataError: no such file, or not one of this library's.
    """
    path = path / RECORD_NAME if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        plain = json.loads(text, parse_constant=_refuse_number)
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        report = TypeAdapter(CompressionReport).validate_json(text, strict=True)
        _check_whole(report)
    except OSError as error:
        got = f"{path} cannot be read ({error.strerror})"
        raise DataError(explain(got=got, need=f"a {RECORD_NAME}", hint="the folder of a compression run")) from error
    except ValueError as error:
        got = f"{path} is no report of a compression run ({_find_first(error)})"
        raise DataError(explain(got=got, need=f"a {RECORD_NAME} of this version", hint="report again")) from error
    return report


def _check_whole(report: CompressionReport) -> None:
    """Raise ValueError where entries do not fit each other, or are too small to be compared."""
    roles, names = [row.role for row in report.rows], [row.name for row in report.rows]
    _need(roles[:1] == ["step"] and roles.count("step") > 1, "rows: the net before, first, and a step")
    _need(len(set(names)) == len(names), "rows: each its own name")
    _need({row.before for row in report.rows} <= {None, *names}, "rows: before, which names another one")
    _need(len(report.headlines) > 0, "headlines: one or more")
    _need(min(*report.size, report.fields, report.batch, report.runs) > 0, "numbers above 0")
    _need(len(report.threads) > 0 and list(report.threads) == sorted({*report.threads}), "threads: rising")
    measured = {*((threads, 1) for threads in report.threads), (report.threads[-1], report.batch)}
    for row in report.rows:
        _need(
            min(row.size_bytes, row.parameters, row.macs, 1 if row.peak_mib is None else row.peak_mib) > 0,
            f"sizes above 0 of {row.name}",
        )
        _need({(each.threads, each.batch) for each in row.timings} >= measured, f"timings of all threads of {row.name}")
        for each in row.timings:
            _need(len(each.times_ms) == report.runs and min(each.times_ms) > 0, f"times of all rounds of {row.name}")


def _need(is_so: bool, what: str) -> None:
    if not is_so:
        raise ValueError(f"it needs {what}")


def _refuse_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _find_first(error: ValueError) -> str:
    """Where the first fault of a file is, and what."""
    if not isinstance(error, ValidationError):
        return read_first_line(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _divide_times(row: ReportRow, other: ReportRow, threads: int, batch: int) -> float:
    ours, theirs = (each.find_timing(threads, batch).times_ms for each in (row, other))
    return float(np.median(np.divide(ours, theirs)))


def _to_plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _to_plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_plain(each) for each in value]
    return value
