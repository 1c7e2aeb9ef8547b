"""Jobs from plan to end: all points of a sweep, one after the other, as the launcher plugin asks, without Hydra."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.assets import find_inputs
from cellvision.cloud.environment import choose_environment
from cellvision.cloud.faults import CloudError
from cellvision.cloud.jobs import build_job, write_job
from cellvision.cloud.ledger import FILE, Ledger
from cellvision.cloud.options import KEY, LaunchOptions
from cellvision.cloud.plans import JobPlan, Launch, plan_job, plan_sweep
from cellvision.cloud.points import Point, check_paths
from cellvision.cloud.sdk import connect, quiet_sdk
from cellvision.cloud.snapshot import check_clean, describe_changes, read_snapshot
from cellvision.cloud.submission import Submitted, fetch, follow, read_score, submit
from cellvision.errors import ConfigError, explain
from cellvision.git_state import describe_git, format_git

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Command, PipelineJob
    from azure.ai.ml.entities._builders import Sweep

    AnyJob = Command | Sweep | PipelineJob


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a point: a value for the sweeper, or the error of its job."""

    value: Any = None
    error: Exception | None = None


def launch_points(points: list[Point], options: LaunchOptions, *, root: Path, folder: Path) -> list[Outcome]:
    """Submit the points of a sweep and do what the options say about them; jobs that are there already are joined.

    Args:
        points: at least one.
        options: of the launcher, checked.
        root: of the code, with the script of the points.
        folder: of the sweep: YAML and records of its jobs are written there.

    Raises:
        CloudError: Azure refuses or does not answer; what was submitted before stays so and is in ``azure_jobs.json``.
        ConfigError: something that would be refused, or that nobody could repeat.
        MissingExtraError: the SDK is not installed.
    """
    with quiet_sdk():
        client = None if options.dry_run else connect(options)
        assets = [asset for point in points for asset in point.assets.items()]
        paths = [path for point in points for path in point.paths.items()]
        scripts = {point.script for point in points}
        launch = prepare(options, assets, client, scripts=scripts, paths=paths, root=root, folder=folder)
        if options.sweep == "native":
            return launch_jobs([plan_sweep(points, launch)], client, folder) * len(points)
        return launch_jobs([plan_job(point, launch) for point in points], client, folder)


def prepare(
    options: LaunchOptions,
    assets: Iterable[tuple[str, str]],
    client: MLClient | None,
    *,
    scripts: Iterable[str],
    paths: Iterable[tuple[str, str]],
    root: Path,
    folder: Path,
) -> Launch:
    """What the jobs of a launch share: code, environment, and the versions of their data.

    Args:
        options: of the launcher.
        assets: pairs of a setting and the asset that it names.
        client: of the workspace; None for a dry run.
        scripts: files of the code that will run.
        paths: pairs of a setting and what it names on this machine; see `find_paths`.
        root: of the code.
        folder: of the launch.

    Raises:
        CloudError: an asset that does not exist, or no answer.
        ConfigError: code that is too large, not committed or left out, a path that jobs do not see, or an environment
            that cannot be built.
    """
    snapshot = read_snapshot(root, max_mib=options.max_snapshot_mib)
    if ignored := sorted(set(scripts) - set(snapshot.files)):
        need = f"a script that goes with the code of {root}"
        raise ConfigError(explain(got=f"{ignored[0]} is ignored", need=need, hint="look into .amlignore"))
    check_paths(paths, snapshot.files)
    if not (options.allow_dirty or options.dry_run):
        check_clean(root)
    environment = choose_environment(options, root=root, folder=folder)
    found = find_inputs(assets, client)
    return Launch(
        options=options,
        snapshot=snapshot,
        environment=environment,
        assets=found,
        sweep=folder.name,
        git=format_git(describe_git(root)),
    )


def launch_jobs(plans: list[JobPlan], client: MLClient | None, folder: Path) -> list[Outcome]:
    """Build, validate and write all jobs, then submit them and do what the options say; without a client only show.

    Raises:
        CloudError: a job that Azure would not take, or no answer.
    """
    jobs = []
    for plan in plans:  # all are built and written before the first is submitted
        jobs.append(build_job(plan))
        _write(plan, jobs[-1], folder, show=client is None)
    if client is not None:
        return _submit_all(client, plans, jobs, folder)
    _conclude(plans)
    return [Outcome(value={"job": plan.name}) for plan in plans]


def _write(plan: JobPlan, job: AnyJob, folder: Path, *, show: bool) -> None:
    path = folder / ("pipeline.yml" if plan.steps else "sweep.yml" if plan.search else f"{plan.index}/job.yml")
    text = write_job(job, path)
    if show:
        print(f"# {path}\n{text}---")


def _conclude(plans: list[JobPlan]) -> None:
    print(f"azure     {len(plans)} valid {'job' if len(plans) == 1 else 'jobs'}, not submitted: {KEY}.dry_run=true")
    if changes := describe_changes(plans[0].launch.snapshot.root):
        print(f"azure     not committed: {changes}; to be submitted so only with {KEY}.allow_dirty=true")


def _submit_all(client: MLClient, plans: list[JobPlan], jobs: list[AnyJob], folder: Path) -> list[Outcome]:
    ledger, submitted = Ledger(folder), []
    # One after the other: two uploads of one tree at a time end in "blob already exists".
    for plan, job in zip(plans, jobs, strict=True):
        found = submit(client, job)
        submitted.append(found)
        _keep(ledger, plan, found)
        print(f"azure     {found.name} {'is there: ' if found.attached else ''}{found.status} {found.url}", flush=True)
    print(f"azure     {ledger.path}")
    options = plans[0].launch.options
    if not (options.wait or options.stream or options.download):
        return [Outcome(value={"job": found.name, "url": found.url}) for found in submitted]
    try:
        return [_finish(client, plan, found, ledger, folder) for plan, found in zip(plans, submitted, strict=True)]
    except KeyboardInterrupt:
        print(f"azure     left alone, the jobs go on; the same command with run_dir={folder} watches them again")
        return [Outcome(value={"job": found.name, "url": found.url}) for found in submitted]


def _keep(ledger: Ledger, plan: JobPlan, found: Submitted) -> None:
    ledger.write(
        plan.name,
        index=plan.index,
        job=found.name,
        status=found.status,
        url=found.url,
        command=plan.command,
        inputs={name: data.path for name, data in plan.inputs.items()},
        snapshot=plan.launch.snapshot.sha256,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _finish(client: MLClient, plan: JobPlan, found: Submitted, ledger: Ledger, folder: Path) -> Outcome:
    status = follow(client, found.name, plan.launch.options)
    ledger.write(plan.name, status=status)
    print(f"azure     {found.name} {status}", flush=True)
    if status != "Completed":
        got, need = f"{found.name} ended as {status}", "a run that came to its end"
        hint = f"its log at {found.url}; the same command again continues it"
        return Outcome(error=CloudError(explain(got=got, need=need, hint=hint)))
    if not plan.launch.options.download:
        return Outcome(value={"job": found.name, "url": found.url})
    run = fetch(client, found.name, folder / str(plan.index))
    print(f"azure     {run}, as listed in {FILE}")
    return Outcome(value=read_score(run))
