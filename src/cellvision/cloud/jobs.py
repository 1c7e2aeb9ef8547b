"""From a plan to a job of Azure's SDK, checked in all the ways that need no service, and to YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.environment import JobEnvironment
from cellvision.cloud.faults import CloudError, find_first_line
from cellvision.cloud.options import KEY, LaunchOptions
from cellvision.cloud.plans import JobPlan, Launch, StepPlan, check_name
from cellvision.cloud.points import OUTPUT
from cellvision.errors import explain
from cellvision.git_state import VARIABLE

if TYPE_CHECKING:
    from azure.ai.ml import Output
    from azure.ai.ml.entities import Command, Environment, PipelineJob
    from azure.ai.ml.entities._builders import Sweep


def build_job(plan: JobPlan) -> Command | Sweep | PipelineJob:
    """The job that a plan describes, validated.

    Raises:
        ConfigError: its name is none for Azure.
        CloudError: one of the three validations of the SDK refuses it.
    """
    check_name(plan.name)
    job = _build_pipeline(plan) if plan.steps else _build_run(plan) if plan.search is None else _build_sweep(plan)
    _validate(job, plan)
    return job


def _build_run(plan: JobPlan) -> Command:
    return _build_command(
        plan,
        name=plan.name,
        command=plan.command,
        inputs=_build_inputs(plan) | {name: values[0] for name, values in (plan.search or {}).items()},
        # The trials of a sweep job share the name, and get folders of Azure's choice.
        outputs={OUTPUT: _build_output(plan, kept=plan.search is None)},
        experiment_name=plan.launch.options.experiment,
        tags=dict(plan.tags),
        compute=plan.launch.options.compute,
        timeout=_read_timeout(plan.launch.options) if plan.search is None else None,
    )


def _build_sweep(plan: JobPlan) -> Sweep:
    from azure.ai.ml.sweep import Choice

    options, search = plan.launch.options, plan.search or {}
    node = _build_run(plan)(**{name: Choice(list(values)) for name, values in search.items()}).sweep(
        primary_metric=str(plan.monitor), goal=plan.goal, sampling_algorithm=options.sampling
    )
    count = options.max_trials or math.prod(map(len, search.values()))
    limits = {"max_total_trials": count, "max_concurrent_trials": min(options.concurrent, count)}
    node.set_limits(**limits, trial_timeout=_read_timeout(options))
    node.name, node.display_name, node.experiment_name = plan.name, plan.name, options.experiment
    node.tags = dict(plan.tags)
    return node


def _build_pipeline(plan: JobPlan) -> PipelineJob:
    from azure.ai.ml.entities import PipelineJob

    return PipelineJob(
        name=plan.name,
        display_name=plan.name,
        experiment_name=plan.launch.options.experiment,
        tags=dict(plan.tags),
        compute=plan.launch.options.compute or "serverless",
        inputs=_build_inputs(plan),
        jobs={step.name: _build_step(plan, step) for step in plan.steps},
    )


def _build_step(plan: JobPlan, step: StepPlan) -> Command:
    from azure.ai.ml import Input
    from azure.ai.ml.entities import ManagedIdentityConfiguration

    options = plan.launch.options
    kinds = {f"${{{{parent.inputs.{name}}}}}": data.kind for name, data in plan.inputs.items()}
    names = {"AZURE_SUBSCRIPTION_ID": options.subscription_id, "AZURE_RESOURCE_GROUP": options.resource_group}
    names |= {"AZURE_ML_WORKSPACE": options.workspace}
    return _build_command(
        plan,
        name=step.name,
        command=step.command,
        inputs={name: Input(type=kinds.get(path, "uri_folder"), path=path) for name, path in step.inputs.items()},
        outputs={name: _build_output(plan, f"/{name}", kept=step.trains) for name in step.outputs},
        variables={name: value for name, value in names.items() if value} if step.acts else {},
        identity=ManagedIdentityConfiguration() if step.acts else None,
        is_deterministic=not step.acts,
        several=step.trains,
        timeout=_read_timeout(options),
    )


def _build_command(
    plan: JobPlan, *, several: bool = True, variables: Mapping[str, str] | None = None, **given: Any
) -> Command:
    """What all commands have in common: code, environment, machines.

    Args:
        plan: of the job.
        several: whether it runs on all GPUs and machines that were asked for, or in one process.
        variables: of the environment, beside those of the options.
        given: the rest.
    """
    from azure.ai.ml import PyTorchDistribution, command

    launch, options = plan.launch, plan.launch.options
    several = several and options.nodes * options.gpus > 1
    return command(
        display_name=given["name"],
        code=str(launch.snapshot.root),
        environment=_build_environment(launch.environment),
        environment_variables=_name_variables(launch) | dict(variables or {}) | options.environment_variables,
        instance_type=options.instance_type,
        job_tier=options.job_tier,
        instance_count=options.nodes if several else 1,
        shm_size=options.shm_size,
        distribution=PyTorchDistribution(process_count_per_instance=options.gpus) if several else None,
        **given,
    )


def _name_variables(launch: Launch) -> dict[str, str]:
    return {"PYTHONPATH": "src"} | ({VARIABLE: launch.git} if launch.git else {})


def _build_inputs(plan: JobPlan) -> dict[str, Any]:
    from azure.ai.ml import Input

    mode = plan.launch.options.data_mode
    return {name: Input(type=data.kind, path=data.path, mode=mode) for name, data in plan.inputs.items()}


def _build_output(plan: JobPlan, place: str = "", *, kept: bool) -> Output:
    """A folder that a job writes.

    Args:
        plan: of the job.
        place: of the folder in that of the job.
        kept: one folder for each name, not for each try, written as the job goes: one that ended half-way is continued
            by the next of its name. Else a folder of Azure's choice; of a step it is uploaded when that has ended, as
            commands make their results whole by renaming, which is safe only on a disk.
    """
    from azure.ai.ml import Output

    path = f"azureml://datastores/{plan.launch.options.datastore}/paths/cellvision/{plan.name}{place}"
    mode = "rw_mount" if kept or not plan.steps else "upload"
    return Output(type="uri_folder", mode=mode, path=path if kept else None)


def _read_timeout(options: LaunchOptions) -> int | None:
    return None if options.timeout_hours is None else round(options.timeout_hours * 3600)


def _build_environment(environment: JobEnvironment) -> Environment | str:
    from azure.ai.ml.entities import BuildContext, Environment

    if environment.name is not None:
        return environment.name
    if environment.context is not None:
        return Environment(build=BuildContext(path=str(environment.context)))
    return Environment(image=environment.image, conda_file=environment.conda and str(environment.conda))


def _validate(node: Any, plan: JobPlan) -> None:
    """Raise CloudError for a job that one of the three refuses: each finds mistakes that the others let pass."""
    from azure.ai.ml.exceptions import MlException
    from marshmallow import ValidationError

    try:
        if not (found := node._validate()).passed:
            raise CloudError(_explain(plan, "; ".join(f"{key}: {text}" for key, text in found.error_messages.items())))
        for command in node.jobs.values() if plan.steps else [] if plan.search else [node]:
            command._to_job()._validate()
        _to_job(node)._to_rest_object()
    except (MlException, ValidationError) as error:
        raise CloudError(_explain(plan, find_first_line(error))) from error


def _explain(plan: JobPlan, text: str) -> str:
    text = " ".join(text.split()).rstrip(".")[:300]
    return explain(got=f"{plan.name} is no valid job ({text})", need="one that Azure takes", hint=f"{KEY} in --help")


def _to_job(node: Any) -> Any:
    return node._to_job() if hasattr(node, "_to_job") else node  # a pipeline is a job already


def write_job(job: Command | Sweep | PipelineJob, path: Path) -> str:
    """Write a job as YAML that ``az ml job create --file`` takes; the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    _to_job(job).dump(str(path))
    return path.read_text(encoding="utf-8")
