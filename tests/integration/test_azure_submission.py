"""Jobs on their way to Azure, with the real SDK and a workspace in memory; and one job executed as it was submitted."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("azure.core", reason="needs the azure extra")

from azure_double import WORKSPACE, AzureDouble
from cellvision.cloud import sdk
from cellvision.cloud.assets import DataInput
from cellvision.cloud.environment import JobEnvironment
from cellvision.cloud.faults import CloudError
from cellvision.cloud.jobs import build_job
from cellvision.cloud.launching import launch_points
from cellvision.cloud.options import LaunchOptions
from cellvision.cloud.plans import Launch, plan_job
from cellvision.cloud.points import Point, Word
from cellvision.cloud.snapshot import list_files, read_snapshot
from cellvision.cloud.submission import fetch, follow, read_score
from cellvision.errors import CellvisionError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed():
    """The double in the place of the network, and the SDK imported, for all tests of this file."""
    double = AzureDouble()
    with sdk.quiet_sdk(), pytest.MonkeyPatch.context() as patch:
        double.install(patch)
        yield double


@pytest.fixture
def azure(installed):
    installed.clear()
    return installed


@pytest.fixture
def tree(tmp_path):
    """A repository of a few small files."""
    root = tmp_path / "code"
    for name, text in {
        "train.py": "print('training')\n",
        "src/cellvision/a.py": "A = 1\n",
        "docker/Dockerfile": "FROM scratch\n",
        "pyproject.toml": "[project]\n",
        "requirements.lock": "torch==2.15.0\n",
        ".amlignore": "*.tif\n/runs/\n",
        ".gitignore": "train.py\n",
        "cells.tif": "pixels",
        "runs/1/best.ckpt": "weights",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def point(*words, index=0, assets=()):
    made = [Word(key=word.split("=")[0], text=word) for word in words]
    made += [Word(key=text.split("=")[0], text=text, asset=text.split("=")[1]) for text in assets]
    return Point(index=index, script="train.py", model="unet", words=tuple(made), monitor="val/mask/ap")


def launch(tree, *points, folder="sweep", **options):
    return launch_points(
        list(points or [point("optim.lr=0.1")]),
        LaunchOptions(**WORKSPACE, **options),
        root=tree,
        folder=tree.parent / folder,
    )


def read_ledger(tree, folder="sweep"):
    return json.loads((tree.parent / folder / "azure_jobs.json").read_text())["jobs"]


def test_a_job_says_all_that_was_asked_for(azure, tree):
    azure.add_data("wells", versions=7)
    given = point("optim.lr=0.1", assets=["data.root=azureml:wells:latest"])
    launch(tree, given, nodes=2, gpus=4, timeout_hours=2.0, compute="big")
    ((name, job),) = azure.jobs.items()
    assert job["jobType"] == "Command"
    assert job["command"].split() == [
        *("python", "train.py", "optim.lr=0.1", "data.root=${{inputs.data__root}}", "trainer=ddp", "trainer.devices=4"),
        *("++trainer.num_nodes=2", "hydra/launcher=basic", "hydra.mode=RUN", "resume=auto", "run_dir=${{outputs.run}}"),
    ]
    assert job["computeId"].endswith("/computes/big")
    assert job["inputs"]["data__root"]["uri"].endswith("/data/wells/versions/7")
    assert job["inputs"]["data__root"]["mode"] == "ReadOnlyMount"
    assert job["outputs"]["run"]["uri"] == f"azureml://datastores/workspaceblobstore/paths/cellvision/{name}"
    assert job["outputs"]["run"]["mode"] == "ReadWriteMount"
    assert job["distribution"] == {"distributionType": "PyTorch", "processCountPerInstance": 4}
    assert job["resources"]["instanceCount"] == 2
    assert job["limits"]["timeout"] == "PT2H"
    assert job["environmentVariables"]["PYTHONPATH"] == "src"
    assert job["tags"]["cellvision.sweep"] == "sweep"
    assert job["tags"]["cellvision.data__root"] == "azureml:wells:7"
    (entry,) = read_ledger(tree)
    assert (entry["job"], entry["status"], entry["inputs"]) == (name, "Queued", {"data__root": "azureml:wells:7"})


def test_the_snapshot_is_what_the_ignore_rules_leave(azure, tree):
    launch(tree)
    (job,) = azure.jobs
    uploaded = azure.list_code(job)
    assert sorted(uploaded) == list_files(tree)
    assert uploaded["train.py"] == (tree / "train.py").read_bytes()  # .gitignore has no say beside .amlignore
    assert "cells.tif" not in uploaded
    contexts = {path.split("/")[-1] for path in azure.blobs if "/LocalUpload/" in path}
    assert contexts == {"Dockerfile", "pyproject.toml", "requirements.lock"}


def test_the_same_command_again_joins_the_job_and_uploads_nothing(azure, tree, capsys):
    launch(tree)
    first, uploads = list(azure.jobs), azure.count("^PUT /")
    assert uploads > 0
    launch(tree, folder="again")
    assert list(azure.jobs) == first
    assert azure.count("^PUT /") == uploads
    assert f"{first[0]} is there: Queued" in capsys.readouterr().out
    azure.set_status(first[0], "Completed")
    launch(tree, folder="once_more")
    assert list(azure.jobs) == first


@pytest.mark.parametrize("status", ["Failed", "Canceled"])
def test_after_a_failure_the_next_try_has_a_number_and_the_same_run_folder(azure, tree, status):
    launch(tree)
    (first,) = azure.jobs
    azure.set_status(first, status)
    uploads = azure.count("^PUT /.*train.py$")
    launch(tree)
    assert list(azure.jobs) == [first, f"{first}-r2"]
    assert azure.jobs[first]["outputs"] == azure.jobs[f"{first}-r2"]["outputs"]
    assert azure.count("^PUT /.*train.py$") == uploads
    azure.set_status(f"{first}-r2", status)
    launch(tree)
    assert list(azure.jobs) == [first, f"{first}-r2", f"{first}-r3"]
    (entry,) = read_ledger(tree)
    assert (entry["plan"], entry["job"]) == (first, f"{first}-r3")


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "src/cellvision/a.py").write_text("A = 2\n"),
        lambda tree: (tree / "requirements.lock").write_text("torch==2.16.0\n"),
    ],
)
def test_other_code_or_packages_are_another_job(azure, tree, change):
    launch(tree)
    change(tree)
    launch(tree)
    assert len(azure.jobs) == 2


def test_a_sweep_that_breaks_in_the_middle_is_continued(azure, tree):
    points = [point(f"optim.lr={rate}", index=index) for index, rate in enumerate((0.1, 0.2, 0.3))]
    azure.fail("PUT jobs/", 500, spared=1)
    with pytest.raises(
        CloudError, match=r"the connection to Azure broke in submitting .*; try: the same command again"
    ):
        launch(tree, *points)
    (kept,) = read_ledger(tree)
    assert [kept["job"]] == list(azure.jobs)
    azure.faults.clear()
    uploads = azure.count("^PUT /")
    outcomes = launch(tree, *points)
    assert azure.count("^PUT /") == uploads
    assert [entry["index"] for entry in read_ledger(tree)] == [0, 1, 2]
    assert [outcome.value["job"] for outcome in outcomes] == list(azure.jobs)
    assert {job["tags"]["cellvision.sweep"] for job in azure.jobs.values()} == {"sweep"}


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        ("GET jobs/", 401, r"no valid Azure credential for looking for .*; try: az login, or AZURE_CLIENT_ID"),
        ("PUT jobs/", 403, r"Azure forbids submitting cv-.*; need the role 'AzureML Data Scientist' on the workspace"),
        ("POST codes/", 403, r"Azure forbids submitting .* 'Storage Blob Data Contributor' on its storage"),
        (
            "PUT jobs/",
            404,
            r"Azure does not know what submitting .* names .*; try: az ml workspace list, az ml compute",
        ),
        ("PUT jobs/", 400, r"Azure refuses submitting .* with 400 \(.*what Azure says with 400"),
        ("PUT jobs/", 409, r"submitting .* clashes with what Azure has already"),
        ("PUT /.*/train.py$", None, r"the connection to Azure broke in submitting .*; need a network that reaches it"),
    ],
)
def test_each_fault_is_one_sentence_and_leaves_nothing_half_done(azure, tree, call, status, said):
    azure.fail(call, status)
    with pytest.raises(CloudError, match=said) as caught:
        launch(tree)
    assert len(str(caught.value).splitlines()) == 1
    assert not azure.jobs
    azure.faults.clear()
    launch(tree)
    (job,) = azure.jobs
    assert sorted(azure.list_code(job)) == list_files(tree)


def test_data_that_do_not_exist_are_named_before_anything_is_uploaded(azure, tree):
    for version in ("latest", "3"):
        with pytest.raises(CloudError, match=f"reading data.root=azureml:wells:{version}"):
            launch(tree, point(assets=[f"data.root=azureml:wells:{version}"]))
    assert not azure.blobs


def test_each_validation_finds_what_the_others_let_pass(azure, tree):
    environment = JobEnvironment(name="azureml:cellvision:1", digest="1")
    launch = Launch(
        options=LaunchOptions(),
        snapshot=read_snapshot(tree, max_mib=1),
        environment=environment,
        assets={},
        sweep="s",
    )
    plan = plan_job(point("seed=1"), launch)
    with sdk.quiet_sdk():
        assert build_job(plan).name == plan.name
    nowhere = replace(launch, snapshot=replace(launch.snapshot, root=tree / "nowhere"))
    data = {"a.b": DataInput(path="azureml:wells:1", kind="uri_folder")}
    for faulty, said in (
        (replace(plan, launch=nowhere), r"cv-unet-\w+ is no valid job \(.*code"),
        (replace(plan, command="python ${{inputs.nope}}"), r"is no valid job \(.*nope.*need one that Azure takes"),
        (replace(plan, inputs=data), r"is no valid job \(.*a\.b"),
        (replace(plan, name="a job"), r"the name 'a job' of a job; need letters, digits, - and _"),
    ):
        with sdk.quiet_sdk(), pytest.raises(CellvisionError, match=said) as caught:
            build_job(faulty)
        assert len(str(caught.value).splitlines()) == 1


def test_a_script_that_is_ignored_is_named(azure, tree):
    (tree / ".amlignore").write_text("*.py\n")
    with pytest.raises(CellvisionError, match=r"train\.py is ignored; need a script that goes with the code"):
        launch(tree)


def test_no_workspace_is_one_sentence(azure, tree, monkeypatch):
    monkeypatch.chdir(tree)
    with pytest.raises(
        CloudError, match=r"no workspace for submitting jobs: .* no config.json .*; need one; try: .*dry_run=true"
    ):
        launch_points([point()], LaunchOptions(), root=tree, folder=tree.parent / "sweep")
    assert not azure.calls


NO_NAMES = '{"subscription_id": "", "resource_group": "", "workspace_name": ""}'


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"subscription_id": "a"}', NO_NAMES])
def test_a_workspace_file_that_names_none_is_one_sentence(azure, tree, monkeypatch, text):
    (tree / "config.json").write_text(text)
    monkeypatch.chdir(tree)
    with pytest.raises(CellvisionError, match=r"a config\.json here .* cannot be read .*; need that of the portal"):
        launch_points([point()], LaunchOptions(), root=tree, folder=tree.parent / "sweep")
    assert not azure.calls


def test_an_empty_name_of_a_workspace_is_none(azure, tree, monkeypatch):
    monkeypatch.chdir(tree)
    options = LaunchOptions(subscription_id="", resource_group="", workspace="")
    with pytest.raises(CloudError, match="no workspace for submitting jobs"):
        launch_points([point()], options, root=tree, folder=tree.parent / "sweep")


def test_a_sweep_of_azures_own_maps_dotted_names(azure, tree):
    grid = [(rate, depth) for rate in ("0.1", "0.2") for depth in ("4", "5")]
    points = [point(f"optim.lr={a}", f"model.depth={b}", "seed=1", index=i) for i, (a, b) in enumerate(grid)]
    outcomes = launch(tree, *points, sweep="native", concurrent=3)
    ((name, job),) = azure.jobs.items()
    assert [outcome.value["job"] for outcome in outcomes] == [name] * 4
    assert job["jobType"] == "Sweep"
    assert job["searchSpace"] == {"optim__lr": ["choice", [["0.1", "0.2"]]], "model__depth": ["choice", [["4", "5"]]]}
    command = job["trial"]["command"]
    assert "optim.lr=${{search_space.optim__lr}} model.depth=${{search_space.model__depth}} seed=1" in command
    assert job["objective"] == {"goal": "maximize", "primaryMetric": "val/mask/ap"}
    assert (job["limits"]["maxTotalTrials"], job["limits"]["maxConcurrentTrials"]) == (4, 3)
    assert "uri" not in job["outputs"]["run"]  # trials that shared a folder would write over each other


def test_waiting_tells_how_jobs_ended(azure, tree, monkeypatch):
    ends = iter(["Running", "Completed", "Failed"])
    looked = []

    def look(self, name, *_):
        azure.set_status(name, next(ends))
        looked.append(name)

    monkeypatch.setattr(
        "cellvision.cloud.submission.time",
        SimpleNamespace(sleep=lambda _: look(None, list(azure.jobs)[len(looked) // 2])),
    )
    points = [point("seed=1"), point("seed=2", index=1)]
    good, bad = launch(tree, *points, wait=True)
    assert good.value["job"] == next(iter(azure.jobs))
    assert "ended as Failed" in str(bad.error)
    assert [entry["status"] for entry in read_ledger(tree)] == ["Completed", "Failed"]


def test_ctrl_c_leaves_the_jobs_alone(azure, tree, monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cellvision.cloud.submission.time", SimpleNamespace(sleep=interrupt))
    (outcome,) = launch(tree, wait=True)
    assert outcome.value["job"] == next(iter(azure.jobs))
    assert azure.count("cancel") == 0
    assert "left alone, the jobs go on; the same command with run_dir=" in capsys.readouterr().out


def test_a_stream_that_ends_in_an_error_is_a_job_that_failed():
    from azure.ai.ml.exceptions import JobException

    def stream(name):
        raise JobException(message="failed", no_personal_data_message="failed")

    client = SimpleNamespace(jobs=SimpleNamespace(stream=stream, get=lambda name: SimpleNamespace(status="Failed")))
    assert follow(client, "cv-unet-0", LaunchOptions(stream=True)) == "Failed"


def test_the_run_folder_is_fetched_as_the_sdk_lays_it_out(tmp_path):
    """Downloading goes to services that the double does not have; the SDK's own signature says if the call fits."""
    import inspect

    from azure.ai.ml.operations import JobOperations

    def download(*given, **named):
        bound = inspect.signature(JobOperations.download).bind(None, *given, **named).arguments
        run = Path(bound["download_path"]) / "named-outputs" / bound["output_name"]
        run.mkdir(parents=True)
        (run / "results.json").write_text('{"monitored": 0.75}')

    client = SimpleNamespace(jobs=SimpleNamespace(download=download))
    run = fetch(client, "cv-unet-0", tmp_path)
    assert read_score(run) == 0.75
    (run / "results.json").write_text("{}")
    with pytest.raises(CloudError, match=r"no score in .*results\.json; need a run that came to its end"):
        read_score(run)
