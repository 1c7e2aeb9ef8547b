"""What a deployment is made of: the scoring script with the runtime, the packages that it needs, a machine."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cellvision
from cellvision.release.record import ModelVersion

if TYPE_CHECKING:
    from azure.ai.ml.entities import ManagedOnlineDeployment

IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04"
SERVER = "azureml-inference-server-http==1.5.1"
"""Microsoft's server, which calls ``init`` and ``run`` of the scoring script, on the image that its examples use."""

SCRIPT, SCRIPT_TEXT = "score.py", "from cellvision.serve.score import init, run\n"
"""At the root of the code: the server imports from the folder of the script, and from no other."""

PARTS = ("bundle", "data", "runtime", "serve")
"""Layers of the library that the script needs, beside the modules of its root."""

TIMEOUT_MS = 90_000


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """How a version is served.

    Attributes:
        instance_type: size of the machine.
        instances: how many of them.
        threads: processor threads of an image, or None for all cores.
        memory_mib: most memory of an image.
    """

    instance_type: str = "Standard_DS3_v2"
    instances: int = 1
    threads: int | None = None
    memory_mib: int | None = None


@contextmanager
def build_deployment(
    version: ModelVersion, *, endpoint: str, colour: str, options: EndpointOptions
) -> Iterator[ManagedOnlineDeployment]:
    """A deployment of a version; its code is in a folder that lasts as long as the ``with`` block.

    Args:
        version: of a model in the workspace.
        endpoint: name of the endpoint.
        colour: name of the deployment.
        options: how it is served.
    """
    from azure.ai.ml.entities import (
        CodeConfiguration,
        Environment,
        ManagedOnlineDeployment,
        OnlineRequestSettings,
    )

    numbers = {"CELLVISION_THREADS": options.threads, "CELLVISION_MEMORY_MIB": options.memory_mib}
    with tempfile.TemporaryDirectory(prefix="cellvision-") as folder:
        _copy_runtime(Path(folder) / "cellvision")
        (Path(folder) / SCRIPT).write_text(SCRIPT_TEXT, encoding="utf-8")
        yield ManagedOnlineDeployment(
            name=colour,
            endpoint_name=endpoint,
            model=f"azureml:{version.name}:{version.version}",
            code_configuration=CodeConfiguration(code=folder, scoring_script=SCRIPT),
            environment=Environment(image=IMAGE, conda_file=describe_packages()),
            environment_variables={name: str(number) for name, number in numbers.items() if number is not None},
            request_settings=OnlineRequestSettings(request_timeout_ms=TIMEOUT_MS),
            instance_type=options.instance_type,
            instance_count=options.instances,
            tags={"cellvision.version": str(version.version)},
        )


def _copy_runtime(folder: Path) -> None:
    package = Path(cellvision.__file__).parent
    for part in PARTS:
        shutil.copytree(package / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for module in package.glob("*.py"):
        shutil.copyfile(module, folder / module.name)


def describe_packages() -> dict[str, Any]:
    """The runtime's packages as a conda file, in the versions that are installed here, which the bundle was tried with.

    Example:
        ``{"dependencies": ["python=3.11", "pip", {"pip": ["numpy==2.2.0", ..]}], ..}``
    """
    try:
        needed = metadata.requires("cellvision") or []
    except metadata.PackageNotFoundError:  # in a job, which has the repository and not the package
        project = Path(cellvision.__file__).parents[2] / "pyproject.toml"
        needed = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    names = [re.split(r"[^\w.-]", text)[0] for text in needed if "extra ==" not in text]
    python = f"python={sys.version_info.major}.{sys.version_info.minor}"
    packages = [f"{name}=={metadata.version(name)}" for name in names]
    return {
        "name": "cellvision",
        "channels": ["conda-forge"],
        "dependencies": [python, "pip", {"pip": [*packages, SERVER]}],
    }
