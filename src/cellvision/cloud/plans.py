"""What is to be submitted, in plain values: command, inputs, machines, and a name that says all of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

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
class Launch:
    """What all jobs of one launch share.

    Attributes:
        options: of the launcher.
        snapshot, environment: code, and what it runs in.
        assets: data in Azure, by what the command line calls them.
        sweep: what the jobs are tagged with.
        git: state of the code in words; "" where it has no history.
    """

    options: LaunchOptions
    snapshot: Snapshot
    environment: JobEnvironment
    assets: Mapping[str, DataInput]
    sweep: str
    git: str = ""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step of a pipeline.

    Attributes:
        name: of the step.
        command: the line that it runs.
        inputs: by name, the output of another step or the input of the pipeline that it is, as Azure refers to it.
        outputs: names of the folders that it writes.
        trains: whether it runs in the processes that Azure starts for the GPUs, and goes on from what its output holds.
        acts: whether it registers or deploys: it needs an identity then, and is done each time.
    """

    name: str
    command: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    trains: bool = False
    acts: bool = False


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """One job.

    Attributes:
        name: the same for the same code, settings, environment, data and machines.
        index: of the point in the sweep; 0 of a sweep job and of a pipeline.
        command: the line that it runs; of a pipeline those of its steps.
        launch: what it shares with others.
        inputs: data assets and models, by name of the input.
        tags: for the portal.
        search: values that Azure chooses from, by name of the input; None for one job.
        monitor, goal: what it compares them by.
        steps: of a pipeline; none for one job.
    """

    name: str
    command: str
    launch: Launch
    inputs: Mapping[str, DataInput]
    tags: Mapping[str, str]
    index: int = 0
    search: Mapping[str, tuple[str, ...]] | None = None
    monitor: str | None = None
    goal: str = "maximize"
    steps: tuple[StepPlan, ...] = ()


def plan_job(point: Point, launch: Launch) -> JobPlan:
    """The job of one point."""
    inputs = {name_input(key): launch.assets[asset] for key, asset in point.assets.items()}
    command = write_command(point, launch.options)
    asked = {"cellvision.overrides": " ".join(word.text for word in point.words)[:256]}
    return JobPlan(
        name=name_job(point.model, command=command, inputs=inputs, launch=launch),
        index=point.index,
        command=command,
        launch=launch,
        inputs=inputs,
        tags=tag_job(launch, model=point.model, inputs=inputs) | asked,
    )


def plan_sweep(points: list[Point], launch: Launch) -> JobPlan:
    """One sweep job for all points, whose settings that differ become its search space.

    Raises:
        ConfigError: no setting differs, the points are not a grid, or a value cannot stand in a shell as it is.
    """
    first = points[0]
    search = _find_search(points)
    if first.monitor is None:
        got, need = f"no monitor with {KEY}.sweep=native", "the score that Azure compares jobs by"
        raise ConfigError(explain(got=got, need=need, hint="monitor=val/mask/ap, or val/pixel/miou"))
    inputs = {name_input(key): launch.assets[asset] for key, asset in first.assets.items()}
    command = write_command(first, launch.options, searched=tuple(search))
    values = {name_input(key): chosen for key, chosen in search.items()}
    model = first.model if len({point.model for point in points}) == 1 else "sweep"
    return JobPlan(
        name=name_job(model, command=f"{command} {json.dumps(values)}", inputs=inputs, launch=launch),
        index=first.index,
        command=command,
        launch=launch,
        inputs=inputs,
        search=values,
        monitor=first.monitor,
        goal=first.goal,
        tags=tag_job(launch, model=first.model, inputs=inputs),
    )


def tag_job(launch: Launch, *, model: str, inputs: Mapping[str, DataInput]) -> dict[str, str]:
    """What the portal is told of a job: its sweep, model, code, commit and the versions of its data."""
    shared = {"sweep": launch.sweep, "model": model, "snapshot": launch.snapshot.sha256[:12]}
    shared |= {name: data.path for name, data in inputs.items()} | ({"git": launch.git} if launch.git else {})
    return {f"cellvision.{key}": value for key, value in shared.items()}


def _find_search(points: list[Point]) -> dict[str, tuple[str, ...]]:
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


def name_job(model: str, *, command: str, inputs: Mapping[str, DataInput], launch: Launch) -> str:
    """A name that is the same whenever the job would be, and another where anything in it is.

    Raises:
        ConfigError: Azure would not take it.
    """
    facts = {
        "command": command,
        "snapshot": launch.snapshot.sha256,
        "environment": launch.environment.digest,
        "inputs": {name: data.path for name, data in inputs.items()},
        "options": {key: value for key, value in asdict(launch.options).items() if key not in _NOT_IN_NAME},
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
