"""What a job runs in: an image built from ``docker/``, a conda file on an image, or a registered environment."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from cellvision.cloud.options import KEY, LaunchOptions
from cellvision.errors import ConfigError, explain

CONTEXT = ("docker/Dockerfile", "pyproject.toml", "requirements.lock")
"""What the image is built from; the code is not part of it, so that a change of code builds nothing."""


@dataclass(frozen=True, kw_only=True)
class JobEnvironment:
    """One of three: a registered name, a build folder, or an image with or without a conda file.

    Attributes:
        name: ``azureml:NAME:VERSION``.
        context: folder with a Dockerfile and what it copies.
        image: address of a base image.
        conda: file of packages for it.
        digest: changes with the contents.
    """

    name: str | None = None
    context: Path | None = None
    image: str | None = None
    conda: Path | None = None
    digest: str = ""


def choose_environment(options: LaunchOptions, *, root: Path, folder: Path) -> JobEnvironment:
    """The environment that was asked for; a build folder is put together in ``folder``.

    Args:
        options: of the launcher.
        root: of the code.
        folder: of the sweep.

    Raises:
        ConfigError: a file that it is made of is missing.
    """
    if options.environment is not None:
        return JobEnvironment(name=options.environment, digest=options.environment)
    if options.image is not None:
        conda = None if options.conda is None else root / options.conda
        if conda is not None and not conda.is_file():
            got, need = f"no file {KEY}.conda={options.conda}", f"a conda file, from {root}"
            raise ConfigError(explain(got=got, need=need, hint=f"{KEY}.conda=null for the image as it is"))
        content = b"" if conda is None else conda.read_bytes()
        digest = hashlib.sha256(options.image.encode() + b"\0" + content).hexdigest()
        return JobEnvironment(image=options.image, conda=conda, digest=digest)
    return JobEnvironment(context=(context := folder / "environment"), digest=_stage(root, context))


def _stage(root: Path, context: Path) -> str:
    """Copy what the image is made of into a folder of its own; SHA-256 of names and contents."""
    if missing := [name for name in CONTEXT if not (root / name).is_file()]:
        got, need = f"no {', no '.join(missing)} in {root}", "them all to build the environment"
        raise ConfigError(explain(got=got, need=need, hint=f"{KEY}.environment=azureml:NAME:VERSION"))
    context.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name in CONTEXT:
        shutil.copyfile(root / name, context / Path(name).name)
        digest.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
