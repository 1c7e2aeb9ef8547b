"""``python train.py trainer=azure`` from the command line to the job, to golden YAML, and to what the job then does."""

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("azure.core", reason="needs the azure extra")
pytest.importorskip("hydra_plugins.cellvision_azureml", reason="needs cellvision itself to be installed")

from azure_double import WORKSPACE, AzureDouble
from azure_scripts import ROOT, install, normalise, open_scripts
from cellvision.cloud import sdk
from cellvision.cloud.options import LaunchOptions
from cellvision.cloud.points import list_own_words
from cellvision.data.livedead import write_livedead_folder
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.training.checkpoint import choose_resume

GOLDEN = ROOT / "tests/golden/azure"
DRY = ("trainer=azure", "hydra.launcher.dry_run=true")
SUBMIT = (
    "trainer=azure",
    "hydra.launcher.allow_dirty=true",
    *(f"hydra.launcher.{k}={v}" for k, v in WORKSPACE.items()),
)


@pytest.fixture(scope="module")
def azure():
    """The double in the place of the network, for all tests of this file."""
    with install(AzureDouble()) as double:
        yield double


@pytest.fixture
def train(azure, tmp_path):
    """``train.py`` with some settings, as if it had been started."""
    azure.clear()
    with open_scripts(tmp_path) as start:
        yield partial(start, "train.py")


JOBS = {
    "one_gpu": ["model=unet"],
    "two_nodes": [
        *("data=livedead", "data.root=azureml:wells:7", "hydra.launcher.nodes=2", "hydra.launcher.gpus=4"),
        *("hydra.launcher.environment=azureml:cellvision:3", "hydra.launcher.timeout_hours=12"),
        "data.channels=[pi,hoechst]",
    ],
    "spot": [
        *("hydra.launcher.compute=null", "hydra.launcher.instance_type=Standard_NC24ads_A100_v4"),
        *("hydra.launcher.job_tier=spot", "seed=3"),
    ],
    "native_sweep": [
        *("hydra.launcher.sweep=native", "monitor=val/loss", "monitor_mode=min", "optim.lr=1e-3,1e-4", "seed=1,2"),
        "data=livedead", "data.root=azureml:wells@latest",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_dry_runs_write_the_jobs_that_they_should(train, tmp_path, name):
    """After a change that was meant: CELLVISION_WRITE_GOLDEN=1 writes them anew, to be looked at before a commit."""
    from azure.ai.ml import load_job

    folder = tmp_path / "sweep"
    train(*DRY, *JOBS[name], f"run_dir={folder}")
    path = folder / ("sweep.yml" if name == "native_sweep" else "0/job.yml")
    text = normalise(path.read_text(encoding="utf-8"), folder)
    if os.environ.get("CELLVISION_WRITE_GOLDEN") == "1":
        (GOLDEN / f"{name}.yml").write_text(text, encoding="utf-8")
    assert text == (GOLDEN / f"{name}.yml").read_text(encoding="utf-8")
    with sdk.quiet_sdk():
        assert load_job(path).type == ("sweep" if name == "native_sweep" else "command")


def test_a_multirun_is_one_valid_job_for_each_point(train, tmp_path, capsys, azure):
    train(*DRY, f"run_dir={tmp_path / 's'}", "-m", "model=unet,centermask2_lite", "optim.lr=1e-3,1e-4")
    printed = capsys.readouterr().out
    assert "azure     4 valid jobs, not submitted: hydra.launcher.dry_run=true" in printed
    texts = [(tmp_path / "s" / str(index) / "job.yml").read_text() for index in range(4)]
    assert all(text in printed for text in texts)
    assert [re.search(r"name: cv-(\w+)-\w{12}\n", text)[1] for text in texts] == ["unet"] * 2 + ["centermask2_lite"] * 2
    assert len({re.search(r"\nname: (.*)", text)[1] for text in texts}) == 4
    assert "model=centermask2_lite optim.lr=0.0001 trainer=gpu" in texts[3].replace("\n ", "")
    assert not azure.calls


def test_variables_of_the_job_are_told_on_the_command_line(train, tmp_path):
    train(*DRY, f"run_dir={tmp_path / 's'}", "hydra.launcher.environment_variables={A: b}")
    assert "  A: b\n" in (tmp_path / "s" / "0" / "job.yml").read_text()


REFUSED = [
    (["trainer=azure"], "no workspace for submitting jobs: .* no config.json was found; .*dry_run=true to see the job"),
    ([*DRY, "data=livedead", "data.root=azureml:a"], r"data\.root=azureml:a without a version; need a data asset with"),
    (["-m", "trainer=azure,cpu"], "trainer=azure,cpu; need trainer=azure alone, as where jobs run is chosen once"),
    (["-m", "trainer=choice(cpu,azure)"], "trainer=choice.cpu,azure.; need trainer=azure alone"),
    (["trainer=azure", "hydra/launcher=basic"], "trainer=azure with hydra/launcher=basic; need the launcher that"),
    ([*DRY, "data=livedead"], r"no value for data\.root; need all of them"),
    ([*DRY, "data=livedead", "data.root=runs/a"], r"data\.root=runs/a, a path of this machine, .*; need a data asset"),
    (
        [*DRY, "callbacks=compress", "compress=[distill]", "compress.distill.teacher=/dev/null"],
        "compress.distill.teacher=/dev/null, a path of this machine, for a job on Azure; need a data asset",
    ),
    ([*DRY, "optim.lrr=1"], "unknown setting 'optim.lrr'"),
    ([*DRY, "+optim.lrr=1"], "unknown setting 'optim.lrr'"),
    ([*DRY, "hydra.launcher.gpu=2"], "unknown setting 'hydra.launcher.gpu'; .*; try: 'hydra.launcher.gpus'"),
    ([*DRY, "hydra.launcher.gpus=-2"], "hydra.launcher.gpus=-2; need a whole number from 0 up"),
    ([*DRY, "hydra.launcher.sweep=native", "-m", "seed=1,2"], "no monitor with hydra.launcher.sweep=native"),
    ([*DRY, "hydra.launcher.sweep=native", "monitor=a"], "1 points with hydra.launcher.sweep=native.*; need a grid"),
    ([*DRY, "hydra.launcher.sweep=native", "monitor=a", "model.widths=[4,8],[8,16]"], r"model.widths=\[4,8\] with .*"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_cannot_be_submitted_is_one_sentence(train, tmp_path, capsys, settings, said):
    with pytest.raises(SystemExit) as left:
        train(f"run_dir={tmp_path / 's'}", *([] if "dry_run" in str(settings) else [SUBMIT[1]]), *settings)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(f"error: {said}", line), line


def test_a_missing_extra_is_named(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "azure.ai.ml", None)
    with pytest.raises(SystemExit):
        train(*DRY, f"run_dir={tmp_path / 's'}")
    assert (
        'azure-ai-ml is not installed; it is needed here; try: pip install "cellvision[azure]"'
        in capsys.readouterr().err
    )


def test_a_run_that_was_meant_for_azure_does_not_train_here(tmp_path, monkeypatch):
    import hydra

    from cellvision import app
    from cellvision.errors import ConfigError

    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = hydra.compose("train", ["trainer=azure", f"run_dir={tmp_path}", "bundle=5"])
    with pytest.raises(
        ConfigError, match=r"trainer=azure outside of a job of Azure ML; need the launcher that submits"
    ):
        app.train(cfg)
    monkeypatch.setenv("AZUREML_RUN_ID", "cv-unet-0")
    with pytest.raises(ConfigError, match=r"bundle=5"):  # it goes on, to what is wrong otherwise
        app.train(cfg)
    assert "where" not in cfg.trainer


def test_help_does_not_import_the_sdk():
    show = (
        "import atexit, sys; atexit.register(lambda: print('azure.ai.ml' in sys.modules, 'cellvision' in sys.modules))"
    )
    code = f"{show}\nimport runpy; sys.argv = ['train.py', '--help']; runpy.run_path('train.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.splitlines()[-1] == "False True"
    assert "azure" in done.stdout


def test_without_a_workspace_a_new_python_says_one_sentence(tmp_path):
    """In a process of its own: the SDK says what it has to say about its own parts once, at its first use."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AZURE", "PYTEST"))}
    given = ["model=unet", "trainer=azure", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "train.py", *given], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no workspace for submitting jobs"), line


SMALL = [
    *("data=livedead", "data.root=azureml:wells:latest", "data.workers=0", "data.batch_size=1"),
    *("data.draws_per_epoch=1", "data.augment.crop.size=32", "model.widths=[8,16]", "trainer.max_epochs=1"),
    *("bundle=false", "callbacks.pictures=null"),
    "mixing={_target_: cellvision.data.augment.Mixing, mixup_probability: 0.5, cutmix_probability: 0.5}",
]  # fmt: skip


def test_the_submitted_command_trains_from_the_uploaded_code(train, azure, tmp_path):
    """Execute what a node would: the snapshot in a clean folder, inputs and outputs in the place of Azure's."""
    azure.add_data("wells", versions=2)
    train(*SUBMIT, *SMALL, "hydra.launcher.gpus=0", f"run_dir={tmp_path / 's'}")
    ((name, job),) = azure.jobs.items()
    node, wells, run = (tmp_path / part for part in ("node", "wells", "run"))
    azure.unpack(name, node)
    fields = SyntheticLiveDead(fields=3, height=64, width=64, cells=(3, 4))
    write_livedead_folder(fields, wells, splits={"train": [0], "val": [1, 2]})
    command = job["command"].replace("${{inputs.data__root}}", str(wells)).replace("${{outputs.run}}", str(run))
    assert "${{" not in command
    database = run / "mlflow.db"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COVERAGE"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {
        "AZUREML_RUN_ID": name,
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
        **job["environmentVariables"],
    }

    def execute(line):
        return subprocess.run(
            ["bash", "-c", line], cwd=node, env=environment, capture_output=True, text=True, timeout=280
        )

    where = execute(f"python -c {shlex.quote('import cellvision; print(cellvision.__file__)')}").stdout
    assert where.strip() == str(node / "src/cellvision/__init__.py")
    run.mkdir()
    first = execute(command)
    assert first.returncode == 0, first.stderr
    assert "resume: no checkpoint yet" in first.stdout
    assert (run / "checkpoints/best.ckpt").stat().st_size > 0
    assert "pixel/miou" in json.loads((run / "results.json").read_text())["held_out"]
    assert json.loads((run / "run.json").read_text())["settings"]["data"]["root"] == str(wells)
    assert "logger=azure" in command
    with sqlite3.connect(database) as connection:
        metrics = {key for (key,) in connection.execute("select key from metrics")}
    assert any(key.startswith("train/") for key in metrics)
    assert any(key.startswith("val/") for key in metrics)
    # What the same command begins with after a node was taken away.
    assert choose_resume("auto", run / "checkpoints") == str(run / "checkpoints/last.ckpt")
    assert "resume=auto" in command


def test_lightning_takes_the_processes_that_azure_starts(monkeypatch):
    """The variables that Azure's PyTorch distribution sets in each process, here the third of the second node."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)  # the trainer below changes it for all that follows
    for name, value in {
        "MASTER_ADDR": "10.0.0.4",
        "MASTER_PORT": "6105",
        "WORLD_SIZE": "8",
        "NODE_RANK": "1",
        "RANK": "6",
        "LOCAL_RANK": "2",
    }.items():
        monkeypatch.setenv(name, value)
    words = dict(word.lstrip("+").split("=") for word in list_own_words(LaunchOptions(nodes=2, gpus=4)))
    devices, nodes = int(words["trainer.devices"]), int(words["trainer.num_nodes"])
    trainer = Trainer(accelerator="cpu", devices=devices, num_nodes=nodes, strategy="ddp", logger=False)
    assert trainer.strategy.cluster_environment.creates_processes_externally
    assert (trainer.world_size, trainer.global_rank, trainer.node_rank, trainer.local_rank) == (8, 6, 1, 2)
