"""Azure's SDK, imported when a job is made and never before: it takes seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellvision.cloud.faults import explained
from cellvision.cloud.options import LaunchOptions
from cellvision.errors import MissingExtraError

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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="GitWildMatchPattern", category=DeprecationWarning)
        try:
            import marshmallow.warnings

            for name in ("RemovedInMarshmallow4Warning", "ChangedInMarshmallow4Warning"):
                if kind := getattr(marshmallow.warnings, name, None):
                    warnings.simplefilter("ignore", kind)
            import azure.ai.ml
        except ImportError as error:
            raise MissingExtraError("azure-ai-ml", extra="azure") from error
        assert azure.ai.ml is not None
        logger = logging.getLogger("azure")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # requests, tries of credentials, parts that are experimental
        try:
            yield
        finally:
            logger.setLevel(level)


def connect(options: LaunchOptions) -> MLClient:
    """A client of the workspace, which has asked nobody yet.

    Raises:
        CloudError: no workspace is named, and no ``config.json`` names one.
    """
    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    credential = DefaultAzureCredential(exclude_interactive_browser_credential=True)
    with explained("submitting jobs"):
        if options.workspace is None:
            return MLClient.from_config(credential, enable_telemetry=False)
        names = (options.subscription_id, options.resource_group, options.workspace)
        return MLClient(credential, *names, enable_telemetry=False)
