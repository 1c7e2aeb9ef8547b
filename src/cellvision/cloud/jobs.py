"""From a plan to a job of Azure's SDK, checked in all the ways that need no service, and to YAML."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.environment import JobEnvironment
from cellvision.cloud.faults import CloudError, find_first_line
from cellvision.cloud.options import KEY, LaunchOptions
from cellvision.cloud.plans import JobPlan, check_name
from cellvision.cloud.points import OUTPUT
from cellvision.errors import explain

if TYPE_CHECKING:
    from azure.ai.ml.entities import Command, Environment
    from azure.ai.ml.entities._builders import Sweep


def build_job(plan: JobPlan) -> Command | Sweep:
    """The job that a plan describes, validated.

    Raises:
        ConfigError: its name is none for Azure.
        CloudError: one of the three validations of the SDK refuses it.
    """
    check_name(plan.name)
    command = _build_command(plan)
    node: Any = command
    if plan.search is not None:
        from azure.ai.ml.sweep import Choice

        options = plan.options
        node = command(**{name: Choice(list(values)) for name, values in plan.search.items()}).sweep(
            primary_metric=str(plan.monitor), goal=plan.goal, sampling_algorithm=options.sampling
        )
        count = options.max_trials or math.prod(map(len, plan.search.values()))
        limits = {"max_total_trials": count, "max_concurrent_trials": min(options.concurrent, count)}
        node.set_limits(**limits, trial_timeout=_read_timeout(options))
        node.name, node.display_name, node.experiment_name = plan.name, plan.name, options.experiment
        node.tags = plan.tags
    _validate(node, plan)
    return node


def _build_command(plan: JobPlan) -> Command:
    from azure.ai.ml import Input, Output, PyTorchDistribution, command

    options = plan.options
    inputs: dict[str, Any] = {
        name: Input(type=data.kind, path=data.path, mode=options.data_mode) for name, data in plan.inputs.items()
    }
    inputs |= {name: values[0] for name, values in (plan.search or {}).items()}
    # One folder for each name, not for each try: a job that ended half-way is continued by the next of its name. The
    # trials of a sweep job share the name, and get folders of Azure's choice.
    path = f"azureml://datastores/{options.datastore}/paths/cellvision/{plan.name}"
    run = Output(type="uri_folder", mode="rw_mount", path=None if plan.search is not None else path)
    several = options.nodes * options.gpus > 1
    return command(
        name=plan.name,
        display_name=plan.name,
        experiment_name=options.experiment,
        tags=plan.tags,
        code=str(plan.snapshot.root),
        command=plan.command,
        inputs=inputs,
        outputs={OUTPUT: run},
        environment=_build_environment(plan.environment),
        environment_variables={"PYTHONPATH": "src", **options.environment_variables},
        compute=options.compute,
        instance_type=options.instance_type,
        job_tier=options.job_tier,
        instance_count=options.nodes,
        shm_size=options.shm_size,
        distribution=PyTorchDistribution(process_count_per_instance=options.gpus) if several else None,
        timeout=_read_timeout(options) if plan.search is None else None,
    )


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
        job = node._to_job()
        if plan.search is None:
            job._validate()
        job._to_rest_object()
    except (MlException, ValidationError) as error:
        raise CloudError(_explain(plan, find_first_line(error))) from error


def _explain(plan: JobPlan, text: str) -> str:
    text = " ".join(text.split()).rstrip(".")[:300]
    return explain(got=f"{plan.name} is no valid job ({text})", need="one that Azure takes", hint=f"{KEY} in --help")


def write_job(job: Command | Sweep, path: Path) -> str:
    """Write a job as YAML that ``az ml job create --file`` takes; the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    job._to_job().dump(str(path))
    return path.read_text(encoding="utf-8")
