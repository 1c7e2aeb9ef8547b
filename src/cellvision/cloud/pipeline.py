"""The steps of ``release/pipeline.py`` as one pipeline of Azure ML: paths become inputs and outputs of its steps."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.assets import DataInput
from cellvision.cloud.endpoint import find_live
from cellvision.cloud.launching import Outcome, launch_jobs, prepare
from cellvision.cloud.options import KEY, LaunchOptions, is_asset
from cellvision.cloud.plans import JobPlan, Launch, StepPlan, name_job, tag_job
from cellvision.cloud.points import Word, drop_local, find_paths, list_trainer_words, name_input, refuse_path
from cellvision.cloud.sdk import connect, quiet_sdk
from cellvision.cloud.snapshot import check_copy, copy_snapshot
from cellvision.errors import ConfigError, explain
from cellvision.release.lock import hold
from cellvision.release.options import parse_deploy
from cellvision.release.pipeline import Plan, build_steps
from cellvision.release.record import AZURE
from cellvision.release.steps import LOCK_NAME, Step, make_folder

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

RUN, PRODUCTION = Path("@run"), Path("@production")
"""What stands in the steps for the folder of the run, and for the bundle in production, until they are wired."""

TRAINS, ACTS = ("train", "compress"), ("register", "deploy")
SETTINGS = ("data", "train", "compress", "export")


def launch_pipeline(
    plan: Plan, options: LaunchOptions, *, settings: Mapping[str, Mapping[str, Any]], root: Path
) -> Outcome:
    """Submit a plan as a pipeline of Azure ML, or join the one that is there already; without a credential show it.

    Args:
        plan: what to do; its folder is where YAML and records of the pipeline are written.
        options: of the launcher.
        settings: of its scripts, by step, as they are composed with `RUN` as the folder.
        root: of the code.

    Raises:
        CloudError: Azure refuses or does not answer.
        ConfigError: a setting that makes no sense there, or something that nobody could repeat.
        MissingExtraError: the SDK is not installed.
    """
    options.check()
    _check(plan, options)
    words = {name: _read_words(getattr(plan, name) or ()) for name in SETTINGS}
    assets = _collect_assets(words)
    copy = plan.folder / "code"
    check_copy(copy, root, plan.folder / "environment", plan.folder / "pipeline.yml")
    make_folder(plan.folder)
    with hold(plan.folder / LOCK_NAME, work="work there"), quiet_sdk():
        client = None if options.dry_run else connect(options)
        if client is not None:
            options = replace(options, **_name_workspace(client))
        remote = place(plan, words, options)
        scripts = {step.command[1] for step in build_steps(remote) if step.command[0] == "python"}
        paths = [path for composed in settings.values() for path in find_paths(composed).items()]
        launch = prepare(options, assets.items(), client, scripts=scripts, paths=paths, root=root, folder=plan.folder)
        launch = replace(launch, snapshot=copy_snapshot(launch.snapshot, copy))
        production = None if client is None else _find_production(client, plan.name)
        (outcome,) = launch_jobs([plan_pipeline(remote, launch, assets, production)], client, plan.folder)
        return outcome


def _check(plan: Plan, options: LaunchOptions) -> None:
    """Raise ConfigError for what a pipeline there cannot do, or would do to no avail."""
    if options.sweep != "jobs" or options.download:
        got = f"{KEY}.{'download=true' if options.download else f'sweep={options.sweep}'} with a pipeline"
        hint = "leave it out, and: az ml job download --name JOB --all"
        raise ConfigError(explain(got=got, need="no such option", hint=hint))
    for name, value, only, why in (
        ("models", plan.models, AZURE, "the registry of the workspace, as nothing on a node lasts"),
        ("host", plan.host, None, "none, as an endpoint has an address of its own"),
        ("port", plan.port, None, "none, as an endpoint has an address of its own"),
        ("keep", plan.keep, True, "an endpoint that stays"),
    ):
        if value != only:
            got = f"{name}={str(value).lower() if isinstance(value, bool) else value} with target=azure"
            raise ConfigError(explain(got=got, need=why, hint=f"leave {name} out"))
    chosen = parse_deploy(build_steps(plan)[-1].command[2:])
    if chosen.models != AZURE:
        got, need = f"--models {chosen.models} in settings.deploy with target=azure", "the registry of the workspace"
        raise ConfigError(explain(got=got, need=need, hint="leave it out"))


def place(plan: Plan, words: Mapping[str, Sequence[Word]], options: LaunchOptions) -> Plan:
    """A plan whose paths are those of a job, with the trainer that its machines need; data are links to the mounts.

    Args:
        plan: as for this machine.
        words: its settings, read.
        options: of the launcher.
    """

    def list_words(name: str) -> tuple[str, ...]:
        keep = [word.text if word.asset is None else f"{word.left}={name_input(word.key)}" for word in words[name]]
        logger = None if any(word.key == "logger" for word in words[name]) else options.logger
        return (*keep, *(list_trainer_words(options, logger) if name in TRAINS else ()))

    given: dict[str, Any] = {name: None if getattr(plan, name) is None else list_words(name) for name in SETTINGS}
    return replace(plan, folder=RUN, **given)


def plan_pipeline(
    remote: Plan, launch: Launch, assets: Mapping[str, str], production: DataInput | None = None
) -> JobPlan:
    """The pipeline of a plan.

    Its name does not tell which version is in production: the same command joins it also when it has changed that.

    Args:
        remote: from `place`.
        launch: code, environment, and the versions of the data.
        assets: data assets by the setting that each stands in.
        production: model to score on the same fields; None for none.
    """
    data = {name_input(key): launch.assets[asset] for key, asset in assets.items()}
    remote = replace(remote, tags=tuple(f"{key}={launch.assets[asset].path}" for key, asset in assets.items()))
    steps = wire(build_steps(remote, None if production is None else PRODUCTION), tuple(data))
    own = wire(build_steps(remote), tuple(data))
    commands = "\n".join(step.command for step in own)
    return JobPlan(
        name=name_job(f"pipeline-{remote.name}", command=commands, inputs=data, launch=launch),
        command="\n".join(step.command for step in steps),
        launch=launch,
        inputs=data if production is None else {**data, PRODUCTION.name[1:]: production},
        tags=tag_job(launch, model=remote.name, inputs=data),
        steps=steps,
    )


def wire(steps: Sequence[Step], data: Sequence[str]) -> tuple[StepPlan, ...]:
    """Steps whose paths are inputs and outputs.

    What a step makes lies under its own name in an output of that name, as commands make files and folders, and some
    of them only where nothing is yet. A script finds data under a link in its folder, which is the same for each: a
    checkpoint knows its data by their path.

    Args:
        steps: of a plan from `place`.
        data: names of the pipeline's data inputs.
    """
    made: dict[Path, str] = {}
    found = []
    for step in steps:
        inputs = {path: made[path] for path in made if any(i.is_relative_to(path) for i in step.inputs)}
        places = {str(path): f"${{{{inputs.{path.stem}}}}}/{path.name}" for path in inputs}
        places |= {str(path): f"${{{{outputs.{path.stem}}}}}/{path.name}" for path in step.outputs}
        bound = {path.stem: reference for path, reference in inputs.items()}
        if PRODUCTION in step.inputs:
            places[str(PRODUCTION)] = "${{inputs.production}}"
            bound["production"] = "${{parent.inputs.production}}"
        is_script = step.command[0] == "python"
        bound |= {name: f"${{{{parent.inputs.{name}}}}}" for name in data if is_script}
        words = step.command if is_script else ("python", "-m", *step.command)
        found.append(
            StepPlan(
                name=step.name,
                command="".join(_link(name) for name in data if is_script) + _write(words, places),
                inputs=bound,
                outputs=tuple(path.stem for path in step.outputs),
                trains=step.name in TRAINS,
                acts=step.name in ACTS,
            )
        )
        made |= {path: f"${{{{parent.jobs.{step.name}.outputs.{path.stem}}}}}" for path in step.outputs}
    return tuple(found)


def _link(name: str) -> str:
    return f"ln -sfn ${{{{inputs.{name}}}}} {name} && "


def _write(words: Sequence[str], places: Mapping[str, str]) -> str:
    line = shlex.join(words)
    for path in sorted(places, key=len, reverse=True):
        line = line.replace(path, places[path])
    return line


def _read_words(settings: Sequence[str]) -> tuple[Word, ...]:
    """Settings as they are for a job.

    Raises:
        ConfigError: one of this machine, or that the launcher decides.
    """
    words = []
    for text in settings:
        left, _, value = text.partition("=")
        words.append(Word(key=left.lstrip("+~"), text=text, asset=value if is_asset(value) else None))
    kept = drop_local(tuple(words))
    for word in kept:
        if word.key == "data.root" and word.asset is None:
            raise refuse_path(word.key, word.value)
    return kept


def _collect_assets(words: Mapping[str, Sequence[Word]]) -> dict[str, str]:
    """Data assets by setting; ConfigError where one setting has two, as all steps share the pipeline's inputs."""
    found: dict[str, str] = {}
    for word in (word for read in words.values() for word in read):
        if word.asset is not None and found.setdefault(word.key, word.asset) != word.asset:
            got = f"{word.key} of two data assets, {found[word.key]} and {word.asset}"
            raise ConfigError(explain(got=got, need="one for all steps", hint=f"settings.data with {word.text} alone"))
    return found


def _name_workspace(client: MLClient) -> dict[str, Any]:
    """Where the client is, for steps that act there."""
    names = {"subscription_id": client.subscription_id, "resource_group": client.resource_group_name}
    return names | {"workspace": client.workspace_name}


def _find_production(client: MLClient, name: str) -> DataInput | None:
    live = find_live(client, name)
    return None if live is None else DataInput(path=f"azureml:{name}:{live.version}", kind="custom_model")
