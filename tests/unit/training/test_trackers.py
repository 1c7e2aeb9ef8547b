"""Trackers begin before a training or refuse to; a server that goes away later costs no score and ends nothing."""

import json
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cellvision.errors import ConfigError, MissingExtraError
from cellvision.training.tracking import tracker as tracker_module
from cellvision.training.tracking.clearml import ClearmlLogger
from cellvision.training.tracking.mlflow import MlflowLogger, NameLimit, _make_database
from cellvision.training.tracking.tracker import Tracker, flatten
from forked import run_two

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

RECORD = {
    "settings": {"run_dir": "a", "optim": {"lr": 0.1}, "long": "x" * 600, "odd name!": True},
    "git": {"commit": "c0ffee", "changed": True},
    "data": {"fingerprint": "f00d"},
    "net": {"config": {"name": "unet"}},
}


class Server(ThreadingHTTPServer):
    """As much of MLflow's wire as one run needs; ``told`` is what it took."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Answer)
        self.told = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})

    def do_POST(self):
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, given):
        call = self.path.partition("?")[0].removeprefix("/api/2.0/mlflow/")
        run = {"info": {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "RUNNING"}, "data": {}}
        known = {
            "experiments/get-by-name": {"experiment": {"experiment_id": "7", "name": "cellvision"}},
            "runs/create": {"run": run},
            "runs/get": {"run": run},
            "runs/log-batch": {},
            "runs/update": {"run_info": run["info"]},
        }
        self.server.told.append((call, given))
        body = json.dumps(known.get(call, {})).encode()
        self.send_response(200 if call in known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No server and no run of the surroundings; one try that is soon given up."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """URI of a database with MLflow's tables, which take seconds to make."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracked')}/mlflow.db"
    return mlflow.MlflowClient(uri), uri


def list_scores(server):
    return [
        (metric["key"], metric["value"], int(metric["step"]))
        for call, given in server.told
        if call == "runs/log-batch"
        for metric in given.get("metrics", [])
    ]


def test_a_server_that_goes_away_costs_no_score_and_ends_nothing(tmp_path, capsys, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    with Server() as server:
        logger = MlflowLogger(folder=tmp_path, uri=server.uri)
        logger.begin(RECORD)
        logger.log_metrics({"val/loss": 3.0, "val/none": float("nan")}, step=1)
        assert list_scores(server) == [("val/loss", 3.0, 1)]
    began = time.monotonic()
    for step in range(2, 12):
        logger.log_metrics({"val/loss": 1.0 / step}, step=step)
    assert time.monotonic() - began < 5  # tried once, not ten times
    logger.keep([tmp_path / "mlflow.json"])
    logger.finalize("success")
    said = capsys.readouterr()
    assert said.err.count("warning: mlflow does not take what it is told (") == 1
    assert said.err.endswith(
        "; the run goes on\nwarning: mlflow: 10 rows of scores were not taken; history.csv has them\n"
    )
    assert "answers again" not in said.out
    with Server(server.server_port) as again:
        monkeypatch.setattr(tracker_module, "RETRY_S", 0)
        logger.finalize("success")
        assert list_scores(again) == [("val/loss", 1.0 / step, step) for step in range(2, 12)]
        assert ("runs/update", "FINISHED") in [(call, given.get("status")) for call, given in again.told]
    assert "mlflow answers again" in capsys.readouterr().out


class Picky(Tracker):
    """Refuses calls with a score called "bad"."""

    def __init__(self, folder):
        super().__init__(folder=folder, package="json")
        self.told = []

    def _open(self, earlier, record):
        return "1"

    def _send(self, rows):
        if any("bad" in row.scores for row in rows):
            raise ValueError("a bad name")
        self.told += [row.step for row in rows]

    def _upload(self, files):
        pass

    def _close(self, *, failed):
        pass


def test_a_row_that_is_refused_for_good_holds_no_other_back(tmp_path, capsys):
    tracker = Picky(tmp_path)
    tracker.begin({})
    for step in range(6):
        tracker.log_metrics({"bad" if step == 2 else "good": 1.0}, step=step)
    tracker.finalize("success")
    assert tracker.told == [0, 1, 3, 4, 5]
    said = capsys.readouterr()
    assert said.err.endswith("warning: json: 1 rows of scores were not taken; history.csv has them\n")
    assert "answers again" not in said.out


def test_a_server_that_is_away_is_not_asked_for_every_row(tmp_path):
    tracker, asked = Picky(tmp_path), []
    tracker.begin({})
    tracker._send = lambda rows: asked.append(len(rows)) or 1 / 0
    for step in range(40):
        tracker.log_metrics({"good": 1.0}, step=step)
    tracker.finalize("success")
    assert asked == [1, 40, 1, 1, 1]
    tracker._send = lambda rows: asked.append([row.step for row in rows])
    tracker.finalize("success")
    assert asked[-1] == list(range(40))


def test_of_more_names_than_azure_takes_those_that_decide_are_told(capsys):
    limit = NameLimit()
    of_training = {f"train/part_{number}": 1.0 for number in range(60)} | {"train/loss": 1.0}
    of_epoch = {f"val/cell/f1_{number}": 1.0 for number in range(60)} | {"val/loss": 1.0, "val/cell/f1": 1.0}
    told = {*limit.choose(of_training), *limit.choose(of_epoch), *limit.choose(of_training)}
    assert {"train/loss", "val/loss", "val/cell/f1"} <= told
    assert 38 <= len(told) <= 50
    assert capsys.readouterr().out.count("Azure takes 50 names of scores") == 1


def test_the_score_that_a_run_is_chosen_by_is_always_told():
    limit = NameLimit("val/instance/pq")
    limit.choose({f"train/part_{number}": 1.0 for number in range(90)})
    assert limit.choose({"val/instance/pq": 0.7, "val/other": 0.1}) == {"val/instance/pq": 0.7}


def test_a_database_that_another_run_made_meanwhile_stays(database):
    path = Path(database[1].removeprefix("sqlite:///"))
    before, number = path.read_bytes(), path.stat().st_ino
    _make_database(path)
    assert (path.read_bytes(), path.stat().st_ino) == (before, number)
    assert [file.name for file in path.parent.iterdir() if file.name.endswith(".tmp")] == []


def test_a_server_that_is_not_there_is_one_sentence_before_the_training(tmp_path):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    with Server() as server:
        pass
    with pytest.raises(ConfigError, match=r"^mlflow cannot begin a run \(.*need a server that answers; try: logger="):
        MlflowLogger(folder=tmp_path, uri=server.uri).begin(RECORD)
    assert not (tmp_path / "mlflow.json").exists()


def test_settings_are_parameters_and_code_and_data_are_tags(tmp_path, database):
    client, uri = database
    logger = MlflowLogger(folder=tmp_path / "fine", uri=uri, experiment="settings")
    logger.begin(RECORD)
    assert (logger.name, logger.version) == (
        "mlflow",
        json.loads((tmp_path / "fine" / "mlflow.json").read_text())["run_id"],
    )
    run = client.get_run(logger.version)
    assert run.data.params == {"run_dir": "a", "optim.lr": "0.1", "long": "x" * 500, "odd name_": "true"}
    for name, text in {
        "git_commit": "c0ffee", "git_changed": "true", "data_fingerprint": "f00d", "net": "unet",
        "mlflow.source.git.commit": "c0ffee", "mlflow.runName": "fine",
    }.items():  # fmt: skip
        assert run.data.tags[name] == text
    logger.finalize("failed")
    assert client.get_run(logger.version).info.status == "FAILED"


def test_a_resumed_run_goes_on_and_a_lost_one_begins_anew(tmp_path, database, capsys):
    client, uri = database
    given = {"folder": tmp_path, "uri": uri, "experiment": "resumed"}
    first, again = MlflowLogger(**given), MlflowLogger(**given)
    first.begin(RECORD)
    again.begin({**RECORD, "settings": {**RECORD["settings"], "resume": "auto", "optim": {"lr": 0.2}}})
    run = client.get_run(first.version)
    assert again.version == first.version
    assert (run.info.status, run.data.params["optim.lr"], run.data.params["resume"]) == ("RUNNING", "0.1", "auto")
    assert run.data.tags["resumed.optim.lr"] == "0.2"
    (tmp_path / "mlflow.json").write_text('{"run_id": "0123"}')
    lost = MlflowLogger(**given)
    lost.begin(RECORD)
    assert lost.version not in ("0123", first.version)
    assert "MLflow has no run 0123 any more" in capsys.readouterr().out
    (tmp_path / "mlflow.json").write_text('{"run')
    damaged = MlflowLogger(**given)
    damaged.begin(RECORD)
    assert damaged.version not in (lost.version, first.version)


def test_the_run_of_a_job_is_joined_and_left_running(tmp_path, database, monkeypatch):
    client, uri = database
    job = client.create_run(client.create_experiment("jobs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", job.info.run_id)
    first = MlflowLogger(folder=tmp_path / "a")
    first.begin(RECORD)
    first.finalize("success")
    assert first.version == job.info.run_id
    run = client.get_run(job.info.run_id)
    assert (run.info.status, run.data.params["optim.lr"], run.data.tags["net"]) == ("RUNNING", "0.1", "unet")
    # Another point of a sweep in the same job, and the job's first training again after its node was taken away.
    second = MlflowLogger(folder=tmp_path / "b")
    second.begin({**RECORD, "settings": {"run_dir": "b"}})
    below = client.get_run(second.version)
    assert below.data.tags["mlflow.parentRunId"] == job.info.run_id
    assert below.info.experiment_id == job.info.experiment_id
    again = MlflowLogger(folder=tmp_path / "a")
    again.begin(RECORD)
    assert again.version == job.info.run_id
    # On another node, where everything is mounted elsewhere, with and without what the first one noted there.
    for noted in (True, False):
        moved = tmp_path / f"noted_{noted}" / "a"
        moved.mkdir(parents=True)
        if noted:
            shutil.copy(tmp_path / "a" / "mlflow.json", moved)
        later = MlflowLogger(folder=moved)
        later.begin({**RECORD, "settings": {"run_dir": str(moved)}})
        later.finalize("success")
        assert later.version == job.info.run_id
        assert client.get_run(job.info.run_id).info.status == "RUNNING"
    # A server that was asked for by name has nothing to do with the job.
    elsewhere = MlflowLogger(folder=tmp_path / "c", uri=uri, experiment="elsewhere")
    elsewhere.begin(RECORD)
    assert elsewhere.version != job.info.run_id


@pytest.mark.parametrize("build", [MlflowLogger, ClearmlLogger])
def test_a_package_that_is_missing_is_named_with_its_extra(build, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_module, "find_spec", lambda name: None)
    name = build.__module__.rpartition(".")[2]
    with pytest.raises(MissingExtraError, match=rf'^{name} is not installed; .*pip install "cellvision\[{name}\]"'):
        build(folder=tmp_path)


class Failing(Tracker):
    """Takes nothing at all."""

    def __init__(self, folder):
        super().__init__(folder=folder, package="json")
        self.calls = 0

    def _open(self, earlier, record):
        return "r"

    def _fail(self, *_, **__):
        self.calls += 1
        raise OSError("gone")

    _send = _upload = _close = _fail


def test_what_is_kept_for_later_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_module, "MOST_ROWS", 3)
    failing = Failing(tmp_path)
    failing.log_metrics({"a": 0.0})  # nothing is sent before the run has begun
    assert failing.calls == 0
    failing.begin({})
    for step in range(9):
        failing.log_metrics({"a": 1.0}, step=step)
    assert failing.calls == 1
    assert [row.step for row in failing._rows] == [6, 7, 8]
    failing.finalize("failed")
    assert failing.calls == 6  # all rows at once, each of the three, and the end


def test_settings_become_texts_by_their_dotted_names():
    given = {"a": {"b": [1, {"c": None}], "d": {}}, "e": 1e-4, "f": True, "g": "text"}
    assert flatten(given) == {"a.b": '[1, {"c": null}]', "a.d": "{}", "e": "0.0001", "f": "true", "g": "text"}


def list_loaded(rank):
    return {"mlflow", "clearml"} & sys.modules.keys()


@pytest.mark.slow
def test_no_module_of_the_library_loads_a_tracker():
    assert run_two(list_loaded) == [set(), set()]  # processes that have all of them loaded
