"""A job on its way: submitted or found again, watched, and its run folder fetched."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.faults import CloudError, explained
from cellvision.cloud.points import OUTPUT
from cellvision.errors import explain

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Command, Job, PipelineJob
    from azure.ai.ml.entities._builders import Sweep

    from cellvision.cloud.options import LaunchOptions

ENDED_BADLY = ("Failed", "Canceled")
ENDED = ("Completed", *ENDED_BADLY)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job that Azure has: its name, its state, its page, and whether it was there before."""

    name: str
    status: str
    url: str
    attached: bool


def submit(client: MLClient, job: Command | Sweep | PipelineJob) -> Submitted:
    """Submit a job, unless one of its name runs or has completed; after a failure under the name with ``-r2``, ...

    Raises:
        CloudError: Azure refused it or could not be reached.
    """
    planned, tries = str(job.name), 1
    while (known := _find(client, str(job.name))) is not None:
        if _read_status(known) not in ENDED_BADLY:
            return _describe(known, attached=True)
        tries += 1
        job.name = job.display_name = f"{planned}-r{tries}"
    with explained(f"submitting {job.name}"):
        return _describe(client.jobs.create_or_update(job), attached=False)


def _find(client: MLClient, name: str) -> Job | None:
    from azure.core.exceptions import ResourceNotFoundError

    with explained(f"looking for {name}"):
        try:
            return client.jobs.get(name)
        except ResourceNotFoundError as error:
            # A missing workspace is answered with 404 too, and would be found out only after the code was uploaded.
            if "workspace" in str(error).lower().partition("jobs")[0]:
                raise
            return None


def _describe(job: Job, *, attached: bool) -> Submitted:
    return Submitted(name=str(job.name), status=_read_status(job), url=str(job.studio_url), attached=attached)


def _read_status(job: Job) -> str:
    return str(getattr(job.status, "value", job.status))


def follow(client: MLClient, name: str, options: LaunchOptions) -> str:
    """Wait until a job has ended, with its log where that was asked for; its last state.

    Raises:
        CloudError: no answer.
    """
    from azure.ai.ml.exceptions import JobException

    with explained(f"watching {name}"):
        if options.stream:
            with contextlib.suppress(JobException):  # which says no more than that the job has failed
                client.jobs.stream(name)
        while (status := _read_status(client.jobs.get(name))) not in ENDED:
            time.sleep(options.poll_s)
    return status


def fetch(client: MLClient, name: str, folder: Path) -> Path:
    """Download the run folder of a job that has ended; where it lies now.

    Raises:
        CloudError: it cannot be had.
    """
    with explained(f"downloading {name}"):
        client.jobs.download(name, download_path=folder, output_name=OUTPUT)
    return folder / "named-outputs" / OUTPUT


def read_score(folder: Path) -> float | None:
    """The score of a run folder that a sweeper compares, or None where there is none.

    Raises:
        CloudError: the folder has no results that can be read.
    """
    path = folder / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return None if results["monitored"] is None else float(results["monitored"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        got, need = f"no score in {path}", "a run that came to its end"
        raise CloudError(explain(got=got, need=need, hint="the log of the job in the portal")) from error
