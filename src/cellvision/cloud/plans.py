"""What is to be submitted, in plain values: command, inputs, machines, and a name that says all of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from cellvision.cloud.assets import DataInput
from cellvision.cloud.environment import JobEnvironment
from cellvision.cloud.options import KEY, LaunchOptions
from cellvision.cloud.points import Point, name_input, write_command
from cellvision.cloud.snapshot import Snapshot
from cellvision.errors import ConfigError, explain

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")
"""What Azure takes as the name of a job, as far as is known; its SDK does not look."""

_NOT_IN_NAME = {
    *("subscription_id", "resource_group", "workspace", "allow_dirty", "max_snapshot_mib"),
    *("dry_run", "wait", "stream", "download", "poll_s"),
}


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """One job.

    Attributes:
        name: the same for the same code, settings, environment, data and machines.
        index: of the point in the sweep; 0 of a sweep job.
        command: the line that it runs.
        snapshot, environment: code, and what it runs in.
        inputs: data assets, by name of the input.
        options: of the launcher.
        tags: for the portal.
        search: values that Azure chooses from, by name of the input; None for one job.
        monitor, goal: what it compares them by.
    """

    name: str
    index: int
    command: str
    snapshot: Snapshot
    environment: JobEnvironment
    inputs: dict[str, DataInput]
    options: LaunchOptions
    tags: dict[str, str] = field(default_factory=dict)
    search: dict[str, tuple[str, ...]] | None = None
    monitor: str | None = None
    goal: str = "maximize"


def plan_job(
    point: Point,
    *,
    options: LaunchOptions,
    snapshot: Snapshot,
    environment: JobEnvironment,
    assets: dict[str, DataInput],
    sweep: str,
) -> JobPlan:
    """The job of one point.

    Args:
        point: what to train.
        options: of the launcher.
        snapshot: the code.
        environment: what it runs in.
        assets: where they are, by what the command line calls them.
        sweep: what all jobs of a sweep are tagged with.
    """
    inputs = {name_input(key): assets[asset] for key, asset in point.assets.items()}
    command = write_command(point, options)
    given: dict[str, Any] = {"snapshot": snapshot, "environment": environment, "inputs": inputs, "options": options}
    asked = {"cellvision.overrides": " ".join(word.text for word in point.words)[:256]}
    return JobPlan(
        name=name_job(point.model, command=command, **given),
        index=point.index,
        command=command,
        tags=_tag(point, snapshot, assets, sweep) | asked,
        **given,
    )


def plan_sweep(
    points: list[Point],
    *,
    options: LaunchOptions,
    snapshot: Snapshot,
    environment: JobEnvironment,
    assets: dict[str, DataInput],
    sweep: str,
) -> JobPlan:
    """One sweep job for all points, whose settings that differ become its search space; arguments as ``plan_job``.

    Raises:
        ConfigError: no setting differs, the points are not a grid, or a value cannot stand in a shell as it is.
    """
    first = points[0]
    search = _find_search(points, options)
    if first.monitor is None:
        got, need = f"no monitor with {KEY}.sweep=native", "the score that Azure compares jobs by"
        raise ConfigError(explain(got=got, need=need, hint="monitor=val/mask/ap, or val/pixel/miou"))
    inputs = {name_input(key): assets[asset] for key, asset in first.assets.items()}
    command = write_command(first, options, searched=tuple(search))
    values = {name_input(key): chosen for key, chosen in search.items()}
    given: dict[str, Any] = {"snapshot": snapshot, "environment": environment, "inputs": inputs, "options": options}
    model = first.model if len({point.model for point in points}) == 1 else "sweep"
    return JobPlan(
        name=name_job(model, command=f"{command} {json.dumps(values)}", **given),
        index=first.index,
        command=command,
        search=values,
        monitor=first.monitor,
        goal=first.goal,
        tags=_tag(first, snapshot, assets, sweep),
        **given,
    )


def _tag(point: Point, snapshot: Snapshot, assets: dict[str, DataInput], sweep: str) -> dict[str, str]:
    found = {"cellvision.sweep": sweep, "cellvision.model": point.model, "cellvision.snapshot": snapshot.sha256[:12]}
    return found | {f"cellvision.{name_input(key)}": assets[asset].path for key, asset in point.assets.items()}


def _find_search(points: list[Point], options: LaunchOptions) -> dict[str, tuple[str, ...]]:
    columns = list(zip(*(point.words for point in points), strict=True))
    search: dict[str, tuple[str, ...]] = {}
    for column in columns:
        texts = tuple(dict.fromkeys(word.value for word in column))
        if len(texts) == 1:
            continue
        key = column[0].key
        if any(word.asset for word in column):
            got, need = f"{key} of several data assets with {KEY}.sweep=native", "one, as a job mounts it"
            raise ConfigError(explain(got=got, need=need, hint=f"{KEY}.sweep=jobs"))
        if awkward := [text for text in texts if not re.fullmatch(r"[\w.+/-]+", text)]:
            got, need = f"{key}={awkward[0]} with {KEY}.sweep=native", "values of letters, digits and . + - / _"
            raise ConfigError(explain(got=got, need=need, hint=f"{KEY}.sweep=jobs"))
        search[key] = texts
    count = math.prod(map(len, search.values()))
    if not search or count != len(points):
        got = f"{len(points)} points with {KEY}.sweep=native, of {count} combinations"
        raise ConfigError(explain(got=got, need="a grid of two points or more", hint=f"{KEY}.sweep=jobs"))
    return search


def name_job(
    model: str,
    *,
    command: str,
    snapshot: Snapshot,
    environment: JobEnvironment,
    inputs: dict[str, DataInput],
    options: LaunchOptions,
) -> str:
    """A name that is the same whenever the job would be, and another where anything in it is.

    Raises:
        ConfigError: Azure would not take it.
    """
    facts = {
        "command": command,
        "snapshot": snapshot.sha256,
        "environment": environment.digest,
        "inputs": {name: data.path for name, data in inputs.items()},
        "options": {key: value for key, value in asdict(options).items() if key not in _NOT_IN_NAME},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    name = f"cv-{model}-{digest}"
    check_name(name)
    return name


def check_name(name: str) -> None:
    """Raise ConfigError for a name that Azure would refuse only after everything was uploaded."""
    if not NAME.fullmatch(name):
        need = "letters, digits, - and _, at most 255 of them, beginning with a letter or a digit"
        raise ConfigError(explain(got=f"the name {name!r} of a job", need=need, hint="model.name of such letters"))
