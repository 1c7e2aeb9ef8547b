"""Sweeps over several processes: two points at a time, jobs of submitit, and both processes of one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from toy import SETTINGS, finish, finish_python

from forked import ROOT, Script

SWEEP = ["train.py", "-m", "optim.lr=1e-3,3e-4", *SETTINGS, "trainer.max_epochs=1", "~callbacks.pictures"]


def check_points(folder: Path) -> None:
    for number, lr in enumerate((1e-3, 3e-4)):
        assert (folder / str(number) / "results.json").is_file()
        assert json.loads((folder / str(number) / "run.json").read_text())["settings"]["optim"]["lr"] == lr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_joblib_trains_two_points_at_once_into_one_database(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweep is not installed")
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    given = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "logger=mlflow", f"logger.mlflow.uri={uri}"]
    finish_python(*SWEEP, *given, f"hydra.sweep.dir={tmp_path / 'sweep'}")  # its workers never begin in a forked child
    check_points(tmp_path / "sweep")
    client = mlflow.MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "cellvision"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.params["optim.lr"] for run in runs} == {"0.001", "0.0003"}
    assert all(run.info.status == "FINISHED" and "test/pixel/miou" in run.data.metrics for run in runs)


@pytest.mark.slow
def test_submitit_trains_each_point_in_a_job_of_its_own(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
    finish(Script(*SWEEP, "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}"))
    check_points(tmp_path)
    assert len(list((tmp_path / ".submitit").glob("*/*_result.pkl"))) == 2


@pytest.mark.slow
def test_a_sweep_with_two_processes_trains_each_point_with_both(tmp_path):
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
    printed = finish(Script(*SWEEP, *two, f"hydra.sweep.dir={tmp_path}"))
    check_points(tmp_path)
    assert printed.count("results   ") == 2


def test_slurm_is_asked_for_a_task_per_gpu(tmp_path, monkeypatch):
    """What sbatch gets for the command of docs/scaling.md; there is no SLURM here to take it."""
    submitit = pytest.importorskip("submitit", reason="the extra slurm is not installed")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
    asked = [
        "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.nodes=2",
        "hydra.launcher.tasks_per_node=4", "hydra.launcher.gpus_per_node=4", "hydra.launcher.cpus_per_task=8",
        "hydra.launcher.timeout_min=1440", "trainer=ddp", "trainer.devices=4", "+trainer.num_nodes=2", "resume=auto",
        "model=centermask2_lite", "run_dir=runs/slurm",
    ]  # fmt: skip
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("train", overrides=asked, return_hydra_config=True)
    assert (cfg.trainer.devices, cfg.trainer.num_nodes) == (4, 2)
    (tmp_path / "srun").touch(mode=0o755)  # submitit looks whether there is one
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    told = cfg.hydra.launcher
    wanted = {"nodes": told.nodes, "gpus_per_node": told.gpus_per_node, "cpus_per_task": told.cpus_per_task}
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(
        **wanted, tasks_per_node=told.tasks_per_node, timeout_min=told.timeout_min, slurm_partition=told.partition
    )
    script = executor._executor._make_submission_file_text("train", "1")
    for line in ("partition=gpu", "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8", "time=1440"):
        assert f"#SBATCH --{line}\n" in script


def test_another_number_of_processes_than_was_started_is_one_sentence(tmp_path):
    started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    started |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    words = ["trainer=ddp", "trainer.devices=3", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    ended = subprocess.run(
        [sys.executable, "train.py", *words, f"run_dir={tmp_path / 'run'}", "data.datasets.all.fields=8"],
        cwd=ROOT, env=os.environ | started, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 2
    said = "need 2 in all, as many as processes were started; try: trainer.devices=2"
    assert ended.stderr.strip() == f"error: trainer.devices=3 on trainer.num_nodes=1; {said}"
