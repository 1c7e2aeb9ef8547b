"""Runs in MLflow: in a file beside the runs, on a server, or the run of the job that trains."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cellvision.training.tracking.tracker import Row, Tracker, describe_code, flatten

LOCAL = "sqlite:///runs/mlflow.db"
_PARAMS, _METRICS = 100, 1000
"""How many of them MLflow takes in one call."""
_AZURE_NAMES, _AZURE_METRICS, _AZURE_TAGS = 50, 250, 50
"""How many names of metrics and tags Azure ML takes of a run, and metrics in one call (its "service limits")."""
_FIRST = re.compile(r"(train|val)/loss|lr.*|(val|test)/(cell/(f1|live_dead_f1)|mask/ap|mask/ap50|pixel/miou|box/ap)")
"""Scores that go before others where there is no room for all."""
_TAKEN_BY = "cellvision.taken_by"
"""Tag of a job's run: the name of the folder of the training that took it. Its path is another one on each node."""
_RESERVED = 12
"""Names of _FIRST that room is kept for."""
_LONGEST = 500
"""Characters of a setting that every server takes; Azure's no more."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow itself would try for minutes, each time; what is set outside stays."""


class NameLimit:
    """Which scores of a run are told where it can have only so many names of them; all are in the files of the run.

    Those that come first are, but losses, learning rates and the scores that nets are chosen by go before others.

    Args:
        monitor: the score that this run's net is chosen by, where it is another one than usual.
    """

    def __init__(self, monitor: str | None = None) -> None:
        self._kept: set[str] = set() if monitor is None else {monitor}
        self._is_full = False

    def choose(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Those of the scores that there is room for; the first time that there is none is said."""
        for name in sorted(scores.keys() - self._kept, key=lambda name: (not _FIRST.fullmatch(name), name)):
            # The scores of an epoch that decide come after others, those of training.
            if len(self._kept) < _AZURE_NAMES - (0 if _FIRST.fullmatch(name) else _RESERVED):
                self._kept.add(name)
            elif not self._is_full:
                self._is_full = True
                print(
                    f"tracking  Azure takes {_AZURE_NAMES} names of scores: {name} and others are in history.csv alone"
                )
        return {name: value for name, value in scores.items() if name in self._kept}


class MlflowLogger(Tracker):
    """Tells MLflow of a run.

    Without ``uri`` the run goes to MLFLOW_TRACKING_URI, and to LOCAL where that is not set; in a job that has a run of
    its own (MLFLOW_RUN_ID, as on Azure ML) into that one, or below it if an earlier training of the job has taken it.
    A run that is not its own it does not end.

    Args:
        folder: of the run.
        uri: of a server, or ``sqlite:///FILE``; of a user and a password MLflow learns from MLFLOW_TRACKING_USERNAME
            and MLFLOW_TRACKING_PASSWORD, never from here: settings are kept with the run.
        experiment: under which runs are gathered; made where there is none. A job's own run has its own.
        run_name: None for the name of the folder.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        uri: str | None = None,
        experiment: str = "cellvision",
        run_name: str | None = None,
    ) -> None:
        super().__init__(folder=folder, package="mlflow")
        self.uri, self.experiment, self.run_name = uri, experiment, run_name
        self._is_own = True
        self._client: Any = None
        self._is_azure = False
        self._names = NameLimit()

    def _open(self, earlier: str | None, record: Mapping[str, Any]) -> str:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
        database = _find_database(uri)
        if database is not None and not database.exists():
            _make_database(database)
        self._client, self._is_azure = MlflowClient(tracking_uri=uri), uri.startswith("azureml")
        self._names = NameLimit(record.get("settings", {}).get("monitor"))
        params = {_clean(name): text[:_LONGEST] for name, text in flatten(record.get("settings", {})).items()}
        tags = describe_code(record)
        if "git_commit" in tags:
            tags["mlflow.source.git.commit"] = tags["git_commit"]
        run_id = self._find_run(earlier) or self._create_run(database, tags)
        self._tell_settings(run_id, params, tags)
        print(f"tracking  MLflow run {run_id} at {re.sub('//[^/@]*@', '//', uri)}")
        return run_id

    def _find_run(self, earlier: str | None) -> str | None:
        """The job's own run, or the one that is resumed; None for a new one."""
        from mlflow.exceptions import MlflowException

        job = None if self.uri else os.environ.get("MLFLOW_RUN_ID")
        if job is not None:
            folder = self.folder.absolute().name
            if earlier == job or self._client.get_run(job).data.tags.get(_TAKEN_BY, folder) == folder:
                self._client.set_tag(job, _TAKEN_BY, folder)
                self._is_own = False
                return job
        if earlier is None:
            return None
        try:
            is_there = self._client.get_run(earlier).info.lifecycle_stage != "deleted"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            is_there = False
        if not is_there:
            print(f"tracking  MLflow has no run {earlier} any more, or another server was asked: a new one begins")
            return None
        self._client.update_run(earlier, status="RUNNING")
        return earlier

    def _create_run(self, database: Path | None, tags: dict[str, str]) -> str:
        job = None if self.uri else os.environ.get("MLFLOW_RUN_ID")
        if job is not None:
            below = {"mlflow.parentRunId": job}
            experiment = self._client.get_run(job).info.experiment_id
        else:
            below, experiment = {}, self._find_experiment(database)
        name = self.run_name or self.folder.absolute().name
        return str(self._client.create_run(experiment, run_name=name, tags=tags | below).info.run_id)

    def _find_experiment(self, database: Path | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            files = None if database is None else (database.parent / "mlflow_artifacts").absolute().as_uri()
            try:
                return str(self._client.create_experiment(self.experiment, artifact_location=files))
            except MlflowException:  # another run has made it meanwhile
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _tell_settings(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """MLflow's parameters never change: what a resumed run has otherwise becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(run_id).data.params
        new = [Param(name, text) for name, text in params.items() if name not in known]
        changed = {f"resumed.{name}": text for name, text in params.items() if known.get(name, text) != text}
        for at in range(0, len(new), _PARAMS):
            self._client.log_batch(run_id, params=new[at : at + _PARAMS])
        told = [RunTag(name, text) for name, text in {**tags, **changed}.items()]
        most = _AZURE_TAGS // 2 if self._is_azure else _PARAMS  # a job's run has tags of its own
        self._client.log_batch(run_id, tags=told[:most])
        if rest := [tag.key for tag in told[most:]]:
            print(f"tracking  {len(rest)} changed settings are no tags, from {rest[0]} on: {most} are taken")

    def _send(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_clean(name), value, row.time_ms, row.step)
            for row in rows
            for name, value in (self._names.choose(row.scores) if self._is_azure else row.scores).items()
        ]
        most = _AZURE_METRICS if self._is_azure else _METRICS
        for at in range(0, len(metrics), most):
            self._client.log_batch(self.run_id, metrics=metrics[at : at + most])

    def _upload(self, files: Sequence[Path]) -> None:
        for file in files:
            inside = file.parent.relative_to(self.folder).as_posix()
            self._client.log_artifact(self.run_id, str(file), None if inside == "." else inside)

    def _close(self, *, failed: bool) -> None:
        if self._is_own:
            self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


def _find_database(uri: str) -> Path | None:
    """File of a local database."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _make_database(path: Path) -> None:
    """Make a database with MLflow's tables, at once: of two runs that begin together the other finds it whole.

    MLflow itself makes table after table in the file that the other has open.
    """
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    MlflowClient(tracking_uri=f"sqlite:///{draft}")
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()


def _clean(name: str) -> str:
    """A name of letters that MLflow takes."""
    return re.sub(r"[^\w/. -]", "_", name)
