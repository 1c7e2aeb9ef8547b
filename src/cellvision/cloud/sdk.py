"""Azure's SDK, imported when a job is made and never before: it takes seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellvision.cloud.faults import DRY_RUN, explain_config, explained, find_first_line
from cellvision.cloud.options import VARIABLES, LaunchOptions
from cellvision.errors import ConfigError, MissingExtraError, explain

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


@contextlib.contextmanager
def quiet_sdk() -> Iterator[None]:
    """Import the SDK and keep to ourselves what it says about its own parts, in and outside of the import.

    Raises:
        MissingExtraError: it is not installed.
    """
    # Tracing looks for exporters in the environment and has nobody to send to.
    os.environ.setdefault("AZURE_TRACING_ENABLED", "false")
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")
    # Steps of a pipeline one after the other: two uploads of one tree at a time end in "blob already exists".
    os.environ.setdefault("AZURE_ML_COMPONENT_REGISTRATION_MAX_WORKERS", "1")
    logger = logging.getLogger("azure")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # requests, tries of credentials, parts that are experimental
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="GitWildMatchPattern", category=DeprecationWarning)
            _import_sdk()
            logging.getLogger("azure.ai.ml").setLevel(logging.CRITICAL)  # its import gives it a level and a handler
            yield
    finally:
        logger.setLevel(level)


def _import_sdk() -> None:
    try:
        import marshmallow.warnings

        for name in ("RemovedInMarshmallow4Warning", "ChangedInMarshmallow4Warning"):
            if kind := getattr(marshmallow.warnings, name, None):
                warnings.simplefilter("ignore", kind)
        import azure.ai.ml
    except ImportError as error:
        raise MissingExtraError("azure-ai-ml", extra="azure") from error
    assert azure.ai.ml is not None


def connect(options: LaunchOptions, *, doing: str = "submitting jobs", otherwise: str = DRY_RUN) -> MLClient:
    """A client of the workspace, which has asked nobody yet.

    Args:
        options: of the launcher; a workspace that they do not name is that of ``config.json``.
        doing: what it is for.
        otherwise: see ``explained``.

    Raises:
        CloudError: no workspace is named, and no ``config.json`` names one.
        ConfigError: that cannot be read.
    """
    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    # In a job this variable says which of a cluster's identities is meant.
    identity = os.environ.get("DEFAULT_IDENTITY_CLIENT_ID", os.environ.get("AZURE_CLIENT_ID"))
    credential = DefaultAzureCredential(
        exclude_interactive_browser_credential=True, managed_identity_client_id=identity
    )
    with explained(doing, otherwise=otherwise):
        if not options.workspace:
            try:
                client = MLClient.from_config(credential, enable_telemetry=False)
            except (ValueError, TypeError, AttributeError, UnicodeError) as error:  # the SDK looks at nothing in it
                raise ConfigError(explain_config(find_first_line(error))) from error
            named = (client.subscription_id, client.resource_group_name, client.workspace_name)
            if not all(name and isinstance(name, str) for name in named):
                raise ConfigError(explain_config("names that are empty"))
            return client
        names = (options.subscription_id, options.resource_group, options.workspace)
        return MLClient(credential, *names, enable_telemetry=False)


@contextlib.contextmanager
def open_workspace(doing: str) -> Iterator[MLClient]:
    """A client of the workspace that the environment or ``config.json`` names, for what has no launcher.

    Args:
        doing: what it is for, in case there is none.

    Raises:
        CloudError: there is none.
        ConfigError: the environment names it in part.
        MissingExtraError: the SDK is not installed.
    """
    named = {name: os.environ.get(variable) or None for name, variable in VARIABLES.items()}
    if None in named.values() and any(named.values()):
        got = f"no {', no '.join(VARIABLES[name] for name, value in named.items() if value is None)}"
        need = "all three in the environment, or none where config.json has them"
        raise ConfigError(explain(got=got, need=need, hint="az account show, az ml workspace list"))
    with quiet_sdk():
        yield connect(LaunchOptions(**named), doing=doing, otherwise="")  # type: ignore[arg-type]
