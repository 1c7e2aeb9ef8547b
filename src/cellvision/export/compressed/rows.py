"""The nets of a compression run, and a bundle of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cellvision.bundle import compute_sha256
from cellvision.compression.prune.cost import count_cost
from cellvision.compression.prune.masks import measure_sparsity
from cellvision.errors import ConfigError, check_choice, explain, unknown_name
from cellvision.export.folder import make_folder
from cellvision.export.forms import Quantizing, write_int8
from cellvision.export.gate.loss import open_loss
from cellvision.export.graph_options import GraphOptions
from cellvision.export.progress import Tell
from cellvision.export.writer import export_checkpoint
from cellvision.models.build import build_model
from cellvision.models.structure.restore import restore_structure
from cellvision.report.record import ROLES, Role
from cellvision.training.checkpoint import BEST, load_net
from cellvision.types import Sample

PHASES = ("prune", "distill", "quantize")
"""Names of a run's best checkpoints, which are those of the steps, in the order in which they are made."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A net that is to be in the report.

    Attributes:
        name: of the row, and of the folder of its bundle.
        checkpoint: of the net.
        role: one of ROLES; a "static" row is the float net of its checkpoint, rounded after training.

    Raises:
        ConfigError: the role is none, or the name no name of a folder.
    """

    name: str
    checkpoint: Path
    role: Role = "step"

    def __post_init__(self) -> None:
        check_choice("role of a row", self.role, ROLES)
        if not self.name or self.name in (".", "..") or set(self.name) & set("/\\:"):
            raise ConfigError(explain(got=f"row {self.name!r}", need="the name of a folder", hint="prune"))


def list_rows(
    run: Path,
    *,
    base: Path,
    phases: Sequence[str] = PHASES,
    scratch: Path | None = None,
    static: Sequence[str] = ("base",),
) -> list[Row]:
    """The rows of a run: the base, the best of each of its phases, those of them rounded after training, the small net.

    That of the last phase is the best of the run, whose score threshold was fitted at the end, as that of the base and
    of the small net was; a net between them has the base's.

    Args:
        run: folder; its phases are in ``checkpoints``.
        base: checkpoint of the uncompressed net.
        phases: those that the run has; files of others are left from one that was begun in this folder before.
        scratch: checkpoint of the small net that was trained on its own; None without one.
        static: names of the rows that are shown rounded after training too, as "ptq" of the base and "NAME ptq" of
            others.

    Raises:
        ConfigError: see `check_static`.
    """
    found = {name: run / "checkpoints" / f"{name}.ckpt" for name in PHASES if name in phases}
    steps = {"base": base, **{name: path for name, path in found.items() if path.is_file()}}
    if len(steps) > 1 and (best := run / "checkpoints" / BEST).is_file():
        steps[list(steps)[-1]] = best
    rows = [Row(name=name, checkpoint=path) for name, path in steps.items()]
    steps |= {"scratch": scratch} if scratch else {}
    check_static(static, list(steps))
    rows += [
        Row(name="ptq" if name == "base" else f"{name} ptq", checkpoint=steps[name], role="static") for name in static
    ]
    return rows + ([Row(name="scratch", checkpoint=scratch, role="scratch")] if scratch else [])


def check_static(names: Sequence[str], steps: Sequence[str]) -> None:
    """Raise ConfigError where these are no names, or one is that of no net in float, or there twice.

    Args:
        names: as ``static`` of `list_rows`.
        steps: those of the run, besides the base.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        got, need = f"report.ptq={names}", "a list of names of steps"
        raise ConfigError(explain(got=got, need=need, hint="report.ptq=[base]"))
    floats = ["base", *(name for name in (*PHASES, "scratch") if name in steps and name != "quantize")]
    for at, name in enumerate(names):
        if name == "scratch" and name not in floats:
            got, need = "report.ptq names scratch", "a net from scratch in this run"
            raise ConfigError(explain(got=got, need=need, hint="report.scratch=true"))
        if name not in floats:
            raise ConfigError(unknown_name("report.ptq entry", name, floats))
        if name in names[:at]:
            given = ",".join(dict.fromkeys(names))
            raise ConfigError(explain(got=f"report.ptq names {name} twice", need="once", hint=f"report.ptq=[{given}]"))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a row without running its bundle; as in `ReportRow`."""

    checkpoint: str
    checkpoint_sha256: str
    model: str
    steps: tuple[str, ...]
    parameters: int
    macs: int
    zeros: float
    rounded_only: bool
    asked_ms: float | None
    reached_ms: float | None


def describe_net(checkpoint: Path, image: Tensor, *, earlier: int = 0) -> Facts:
    """What a checkpoint's net is and costs. Rounding changes neither its weights' number nor its multiplications.

    Args:
        checkpoint: of the net.
        image: (1, C, H, W) raw counts that the multiplications are counted for.
        earlier: so many of its steps are of runs before, which met or missed latencies of their own.

    Raises:
        DataError: the checkpoint cannot be used.
    """
    net, record = load_net(checkpoint)
    zeros = measure_sparsity(net)
    if any(step["step"] == "quantize" for step in record.recipe):  # rounded weights cannot be told from any tensor
        net = build_model(**record.net)
        restore_structure(net, [step for step in record.recipe if step["step"] != "quantize"])
    cost = count_cost(net, image)
    pruned: Mapping[str, Any] = next((step for step in record.recipe[earlier:][::-1] if step["step"] == "prune"), {})
    return Facts(
        checkpoint=str(checkpoint),
        checkpoint_sha256=compute_sha256(checkpoint),
        model=net.spec.name,
        steps=tuple(step["step"] for step in record.recipe),
        parameters=cost.parameters,
        macs=cost.macs,
        zeros=zeros,
        rounded_only=any(step.get("trained") is False for step in record.recipe if step["step"] == "quantize"),
        asked_ms=pruned.get("options", {}).get("latency_ms"),
        reached_ms=pruned.get("reached_ms"),
    )


def make_bundles(
    rows: Sequence[Row],
    folder: Path,
    *,
    samples: Sequence[Sample],
    fields: Sequence[Sample],
    tolerance_points: float,
    rounds: int,
    options: GraphOptions | None,
    tell: Tell,
) -> dict[str, Path]:
    """Bundles by the rows' names, in ``folder/NAME``; earlier ones there are replaced.

    A net that learned to round gets a graph of integers, others one in float, and a static row that of the same net
    with ranges measured on ``fields``; where it loses too much there, with some layers left in float.

    Args:
        rows: those that a static one rounds are among them.
        folder: of the report.
        samples: held-out fields that graphs are compared with their nets on.
        fields: of the training split, with true cells; only static rows need them.
        tolerance_points: largest loss of a static row on them that is good enough.
        rounds: of the search for layers of a static row that stay in float, from 0 up.
        options: of the graphs.
        tell: called with lines on the progress.

    Raises:
        ConfigError: a static row of a net that no other row shows in float, or without fields.
        DataError, BundleError, ExportError: as for `export_checkpoint`.
    """
    sources = {row.name: find_source(row, rows).name for row in rows if row.role == "static"}
    if sources and not fields:
        got = f"static rows {', '.join(sources)} and no training field"
        raise ConfigError(explain(got=got, need="fields to measure ranges on", hint="static=() to leave them out"))
    _check_float([row for row in rows if row.role == "static"])
    bundles: dict[str, Path] = {}
    for row in sorted(rows, key=lambda row: row.role == "static"):
        target = bundles[row.name] = folder / row.name
        told = _prefix(row.name, tell)
        if row.role == "static":
            source = bundles[sources[row.name]]
            quantizing = Quantizing(
                images=[field.image for field in fields],
                measure=open_loss(source, fields, tell=told) if rounds and fields else None,
                tolerance_points=tolerance_points,
                rounds=rounds,
                tell=told,
            )
            with make_folder(target.resolve(), overwrite=True) as made:
                write_int8(source, made, quantizing)
        else:
            given: dict[str, Any] = {"samples": samples, "options": options, "overwrite": True}
            export_checkpoint(row.checkpoint, target, **given, tell=told)
    return bundles


def _prefix(name: str, tell: Tell) -> Tell:
    return lambda text: tell(f"{name}: {text}")


def find_source(row: Row, rows: Sequence[Row]) -> Row:
    """The row in float whose net a static row rounds.

    Raises:
        ConfigError: there is none.
    """
    for other in rows:
        if other.role != "static" and other.checkpoint == row.checkpoint:
            return other
    got = f"static row {row.name!r} of {row.checkpoint}"
    raise ConfigError(explain(got=got, need="another row of that checkpoint", hint="a row with role='step'"))


def _check_float(rows: Sequence[Row]) -> None:
    """Raise ConfigError where a row's net rounds already."""
    for row in rows:
        if any(step["step"] == "quantize" for step in load_net(row.checkpoint)[1].recipe):
            got = f"static row {row.name!r} of a net that rounds already"
            raise ConfigError(explain(got=got, need="a net in float", hint="a checkpoint from before its rounding"))
