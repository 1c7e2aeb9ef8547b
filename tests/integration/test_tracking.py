"""Runs as MLflow and ClearML have them: whole, and once, also where a part was resumed; nothing is sent unasked."""

import json
import zipfile

import pytest
from toy import finish, name_run, start

from forked import Script, call, start_two

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # SQLAlchemy, of MLflow's tables
]

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
SYSTEM_USE = "+callbacks.system_use={_target_: cellvision.training.tracking.system_use.SystemUse, every_s: 0.001}"
GUARDED = """
import os, runpy, socket, sys

def watch(event, given):
    if event == "socket.connect" and not isinstance(given[1], (str, bytes)):
        with open(os.environ["CONNECTIONS"], "a") as file:
            print(given[1], file=file)

sys.addaudithook(watch)
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    socket.socket().connect_ex(("127.0.0.1", 9))
"""


def test_a_run_of_two_processes_that_goes_on_with_one_is_one_in_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    folder, uri = tmp_path / "first", f"sqlite:///{tmp_path}/tracked/mlflow.db"
    given = ["logger=[csv,mlflow]", f"logger.mlflow.uri={uri}", "trainer.max_epochs=2", SYSTEM_USE]
    first, second = start_two(*name_run(folder, *given, *TWO))
    with second:
        printed = finish(first)
        assert second.finish().returncode == 0
    client = mlflow.MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "cellvision"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert f"tracking  MLflow run {run.info.run_id} at {uri}\n" in printed
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params["optim.lr"] == "0.002"
    assert run.data.params["model.widths"] == "[4, 8]"
    assert run.data.params["trainer.devices"] == "2"
    facts = json.loads((folder / "run.json").read_text())
    assert run.data.tags["data_fingerprint"] == facts["data"]["fingerprint"]
    assert run.data.tags["net"] == "unet"
    assert run.data.tags.get("git_commit") == facts["git"].get("commit")
    told = client.get_metric_history(run.info.run_id, "val/loss")
    shown = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    assert [each.value for each in told] == pytest.approx([float(row[shown[0].index("val/loss")]) for row in shown[1:]])
    assert run.data.metrics["system/process_memory_gib"] > 0.1
    assert 0 < run.data.metrics["system/memory_percent"] < 100
    assert "system/cpu_percent" in (folder / "csv" / "version_0" / "metrics.csv").read_text()
    results = json.loads((folder / "results.json").read_text())["held_out"]
    assert run.data.metrics["test/pixel/miou"] == pytest.approx(results["pixel/miou"])
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"results.json", "run.json", "history.csv", "curves.png", "viability.png", "pictures"} <= files
    assert (tmp_path / "tracked" / "mlflow_artifacts").is_dir()

    one = ["resume=auto", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=3"]
    finish(start(folder, *given, *one))
    (again,) = client.search_runs([experiment.experiment_id])
    assert again.info.run_id == run.info.run_id
    assert again.data.params["trainer.devices"] == "2"
    assert again.data.tags["resumed.trainer.devices"] == "1"
    assert len(client.get_metric_history(run.info.run_id, "val/loss")) == 3


def test_an_offline_run_of_clearml_is_whole_and_sends_nothing(tmp_path):
    pytest.importorskip("clearml", reason="the extra clearml is not installed")
    folder, guarded, connections = tmp_path / "run", tmp_path / "guarded.py", tmp_path / "connections"
    guarded.write_text(GUARDED)
    given = ["logger=clearml", "logger.clearml.offline=true", "trainer.max_epochs=2", "~callbacks.pictures"]
    _, *settings = name_run(folder, *given)
    finish(Script(guarded, *settings, environment={"CONNECTIONS": connections}))
    assert connections.read_text() == "('127.0.0.1', 9)\n"  # its own, in the end, which shows that it would see others
    (session,) = (folder / "clearml" / "offline").glob("offline-*.zip")
    with zipfile.ZipFile(session) as parts:
        task = json.loads(parts.read("task.json"))
        told = parts.read("metrics.jsonl").decode()
        files = parts.namelist()
    assert (task["name"], task["hyperparams"]["settings"]["optim.lr"]["value"]) == ("run", "0.002")
    assert '"pixel/miou"' in told
    assert any(name.endswith("results.json") for name in files)
    assert json.loads((folder / "clearml.json").read_text())["run_id"].startswith("offline-")


BEGIN = """
import json, os, sys
from cellvision.errors import ConfigError
from cellvision.training.tracking.clearml import ClearmlLogger

kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLEARML_", "TRAINS_"))}
os.environ.clear()
os.environ.update(kept, **json.loads(sys.argv[2]))
try:
    ClearmlLogger(folder=sys.argv[1]).begin({})
except ConfigError as error:
    print(error)
"""
ACCESS = {"CLEARML_API_ACCESS_KEY": "a", "CLEARML_API_SECRET_KEY": "b", "CLEARML_API_HOST": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("access", "said"),
    [
        ({}, "logger=clearml without access to a server; need what clearml-init asks for; try: clearml-init, or "),
        (ACCESS, "clearml cannot begin a run (URLError: "),
    ],
)
def test_clearml_without_a_server_is_one_sentence(tmp_path, access, said):
    pytest.importorskip("clearml", reason="the extra clearml is not installed")
    begin = tmp_path / "begin.py"
    begin.write_text(BEGIN)
    given = {"CLEARML_CONFIG_FILE": str(tmp_path / "none.conf"), **access}
    done = call(begin, tmp_path, json.dumps(given))
    assert done.stdout.startswith(said), done
    assert not (tmp_path / "clearml.json").exists()
