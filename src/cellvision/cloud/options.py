"""What can be said about a job on Azure ML: where it runs, on what, and what becomes of it here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cellvision.checks import check_count, check_range
from cellvision.errors import ConfigError, check_choice, explain

KEY = "hydra.launcher"
VARIABLES = {
    "subscription_id": "AZURE_SUBSCRIPTION_ID",
    "resource_group": "AZURE_RESOURCE_GROUP",
    "workspace": "AZURE_ML_WORKSPACE",
}
"""Of the environment, which say what the options of these names do not."""

ASSET = re.compile(r"azureml:([A-Za-z0-9][\w.-]*)[:@]([\w.-]+)")
"""A registered asset: ``azureml:NAME:VERSION``, ``azureml:NAME:latest`` or ``azureml:NAME@latest``."""


_TEXTS = (
    ("compute", r"[A-Za-z][\w-]*", "the name of a cluster: letters, digits, - and _", "gpu-cluster"),
    ("instance_type", r"\w+", "a size of machine", "Standard_NC24ads_A100_v4"),
    ("datastore", r"\w+", "the name of a datastore: letters, digits and _", "workspaceblobstore"),
    ("experiment", r"\w[\w .-]{0,254}", "a name of letters, digits, blanks, . - and _", "cellvision"),
    ("shm_size", r"[1-9]\d*[bkmg]?", "a size in bytes, or with k, m or g", "8g"),
)
"""Settings that are texts: their form, that in words, and an example."""


def is_asset(value: str) -> bool:
    """Whether a value names data in Azure, by name and version or by address."""
    return ASSET.fullmatch(value) is not None or value.startswith("azureml://")


@dataclass
class LaunchOptions:
    """The settings of ``hydra.launcher``, which Hydra reads from this class; not frozen, as that would be read-only.

    Attributes:
        subscription_id, resource_group, workspace: null, all three: those of ``config.json`` here or further up.
        compute: name of a cluster; null = serverless, which needs ``instance_type``.
        instance_type: size of a serverless machine, such as Standard_NC24ads_A100_v4.
        job_tier: of serverless machines: spot | basic | standard | premium. A cluster has its own.
        nodes: machines of one job.
        gpus: GPUs, and so processes, of each machine; 0 = one process without a GPU.
        environment: ``azureml:NAME:VERSION``; null = built from ``docker/Dockerfile`` and the pinned packages.
        conda: conda file, on ``image``, in place of ``docker/``.
        image: base image of ``conda``, or, alone, an image that has everything.
        data_mode: how data assets get to the job: ro_mount | download.
        datastore: what the run folder lies in.
        experiment: name that jobs are grouped by.
        environment_variables: more of them, by name.
        shm_size: shared memory of the container, for loader processes.
        timeout_hours: the job is ended after so many; null = never.
        logger: choice of the group ``logger`` in the job, where no other was asked for; null = that of train.yaml.
        sweep: jobs: one for each point | native: one sweep job, in which Azure chooses points.
        sampling, concurrent, max_trials: of a native sweep: grid | random | bayesian; at once; in all, null = all.
        allow_dirty: submit a tree with changes that are not committed.
        max_snapshot_mib: refuse to upload more code than that.
        dry_run: validate, print and write the jobs; needs no credential.
        wait: until the job has ended, looking every ``poll_s`` seconds.
        stream: the same, showing its log.
        download: the run folder, after it has ended.
    """

    subscription_id: str | None = None
    resource_group: str | None = None
    workspace: str | None = None
    compute: str | None = "gpu-cluster"
    instance_type: str | None = None
    job_tier: str | None = None
    nodes: int = 1
    gpus: int = 1
    environment: str | None = None
    conda: str | None = None
    image: str | None = None
    data_mode: str = "ro_mount"
    datastore: str = "workspaceblobstore"
    experiment: str = "cellvision"
    environment_variables: dict[str, str] = field(default_factory=dict)
    shm_size: str = "8g"
    timeout_hours: float | None = None
    logger: str | None = "azure"
    sweep: str = "jobs"
    sampling: str = "grid"
    concurrent: int = 4
    max_trials: int | None = None
    allow_dirty: bool = False
    max_snapshot_mib: float = 50.0
    dry_run: bool = False
    wait: bool = False
    stream: bool = False
    download: bool = False
    poll_s: float = 30.0

    def check(self) -> None:
        """Raise ConfigError for settings that are out of range, or that do not go together."""
        for name, known in (
            ("data_mode", ("ro_mount", "download")),
            ("sweep", ("jobs", "native")),
            ("sampling", ("grid", "random", "bayesian")),
        ):
            check_choice(f"{KEY}.{name}", getattr(self, name), known)
        if self.job_tier is not None:
            check_choice(f"{KEY}.job_tier", self.job_tier, ("spot", "basic", "standard", "premium"))
        for name, least in (("nodes", 1), ("gpus", 0), ("concurrent", 1), ("max_trials", 1)):
            check_count(f"{KEY}.{name}", getattr(self, name), low=least, or_none=name == "max_trials", example=1)
        for name, smallest, usual in (
            ("timeout_hours", 0.02, 24),
            ("poll_s", 0.01, 30),
            ("max_snapshot_mib", 0.01, 50),
        ):
            if getattr(self, name) is not None:
                check_range(f"{KEY}.{name}", getattr(self, name), low=smallest, example=usual)
        self._check_names()
        if self.nodes > 1 and self.gpus == 0:
            got = f"{KEY}.nodes={self.nodes} with {KEY}.gpus=0"
            raise ConfigError(explain(got=got, need="GPUs on several machines", hint=f"{KEY}.nodes=1"))
        self._check_machine()
        self._check_environment()
        self._check_workspace()

    def _check_names(self) -> None:
        """Raise ConfigError for what Azure would take for no name, or no size."""
        for name, form, need, example in _TEXTS:
            if (text := getattr(self, name)) is not None and not re.fullmatch(form, str(text)):
                raise ConfigError(explain(got=f"{KEY}.{name}={text}", need=need, hint=f"{KEY}.{name}={example}"))

    def _check_machine(self) -> None:
        if (self.compute is None) != (self.instance_type is not None):
            got = f"{KEY}.compute={self.compute} with {KEY}.instance_type={self.instance_type}"
            need = "either a cluster or the size of a serverless machine"
            hint = f"{KEY}.compute=null {KEY}.instance_type=Standard_NC24ads_A100_v4"
            raise ConfigError(explain(got=got, need=need, hint=hint))
        if self.job_tier is not None and self.compute is not None:
            got = f"{KEY}.job_tier={self.job_tier} with {KEY}.compute={self.compute}, which has a tier of its own"
            raise ConfigError(explain(got=got, need="one or the other", hint=f"{KEY}.job_tier=null"))

    def _check_environment(self) -> None:
        if self.environment is not None and not ASSET.fullmatch(self.environment):
            got, need = f"{KEY}.environment={self.environment}", "azureml:NAME:VERSION"
            raise ConfigError(explain(got=got, need=need, hint=f"{KEY}.environment=null for that of docker/"))
        if self.environment is not None and (self.conda or self.image):
            got = f"{KEY}.environment={self.environment} with a conda file or an image"
            raise ConfigError(explain(got=got, need="one environment", hint=f"{KEY}.environment=null"))
        if self.conda is not None and self.image is None:
            got, need = f"{KEY}.conda={self.conda}", "the image that it is installed on"
            raise ConfigError(explain(got=got, need=need, hint=f"{KEY}.image=mcr.microsoft.com/azureml/..."))

    def _check_workspace(self) -> None:
        names = ("subscription_id", "resource_group", "workspace")
        missing = [f"{KEY}.{name}" for name in names if not getattr(self, name)]
        if 0 < len(missing) < len(names):
            got, need = f"no {' and no '.join(missing)}", "all three, or none where config.json has them"
            raise ConfigError(explain(got=got, need=need, hint=" ".join(f"{name}=..." for name in missing)))
