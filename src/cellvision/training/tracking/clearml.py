"""Runs in ClearML, or in a file that can be sent to it later."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from cellvision.errors import ConfigError, explain
from cellvision.training.tracking.tracker import Row, Tracker, describe_code, flatten


class ClearmlLogger(Tracker):
    """Tells ClearML of a run: what this library hands over and nothing that ClearML would gather by itself.

    Args:
        folder: of the run.
        project: under which runs are gathered.
        task_name: None for the name of the folder.
        offline: send nothing; the run is a zip in the folder ``clearml/offline`` of the run, which
            ``clearml.Task.import_offline_session`` sends later. A resumed run makes one more.
    """

    def __init__(
        self, *, folder: str | Path, project: str = "cellvision", task_name: str | None = None, offline: bool = False
    ) -> None:
        super().__init__(folder=folder, package="clearml")
        self.project, self.task_name, self.offline = project, task_name, offline
        self._task: Any = None

    def _open(self, earlier: str | None, record: Mapping[str, Any]) -> str:
        if self.offline:
            os.environ["CLEARML_CACHE_DIR"] = str((self.folder / "clearml").absolute())
        from clearml import Task
        from clearml.config import config_obj

        # By itself it reports from a copy of this process, which it makes while another thread of it asks git about the
        # code: the copy keeps that thread's pipe open, so that the thread waits for ever.
        config_obj.set_overrides({"sdk": {"development": {"report_use_subprocess": False}}})
        if self.offline:
            Task.set_offline(True)
        else:
            _check_server()
        goes_on = "" if self.offline else earlier or ""
        self._task = Task.init(
            project_name=self.project,
            task_name=self.task_name or self.folder.absolute().name,
            reuse_last_task_id=False,
            continue_last_task=goes_on or False,
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
            output_uri=False,
        )
        if goes_on:
            self._task.set_initial_iteration(0)  # steps are counted from the beginning of the run, not of its part
        self._task.connect(flatten(record.get("settings", {})), name="settings")
        self._task.connect(describe_code(record), name="code and data")
        return str(self._task.id)

    def _send(self, rows: Sequence[Row]) -> None:
        logger = self._task.get_logger()
        for row in rows:
            for name, value in row.scores.items():
                title, _, series = name.partition("/")
                logger.report_scalar(title, series or title, value, row.step)

    def _upload(self, files: Sequence[Path]) -> None:
        for file in files:
            name = file.relative_to(self.folder).as_posix()
            self._task.upload_artifact(name, artifact_object=str(file), wait_on_upload=True)
        self._task.close()

    def _close(self, *, failed: bool) -> None:
        self._task.flush(wait_for_uploads=True)
        if failed:
            self._task.mark_failed(force=True)
            self._task.close()


def _check_server() -> None:
    """Raise an error unless something answers where ClearML is set up to look; by itself it would try for very long."""
    from clearml.backend_api import Session
    from clearml.config import config_obj

    given = (os.environ.get(name) for name in ("CLEARML_API_ACCESS_KEY", "CLEARML_AUTH_TOKEN"))
    if not (any(given) or config_obj.get("api.credentials.access_key", None)):
        got, need = "logger=clearml without access to a server", "what clearml-init asks for"
        raise ConfigError(explain(got=got, need=need, hint="clearml-init, or logger.clearml.offline=true"))
    server = Session.get_api_server_host()
    if not server.startswith(("http://", "https://")):
        raise ValueError(f"{server!r} is no address of a server")
    try:
        urlopen(f"{server}/debug.ping", timeout=10).close()  # noqa: S310
    except HTTPError:
        return  # an answer, too
