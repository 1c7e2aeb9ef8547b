"""``python pipeline.py target=azure``: to golden YAML, to the job, and to what its steps then do, in order."""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("azure.core", reason="needs the azure extra")
pytest.importorskip("hydra_plugins.cellvision_azureml", reason="needs cellvision itself to be installed")

from azure_double import WORKSPACE
from azure_scripts import COMMIT, ROOT, install, normalise, open_scripts
from azure_serving_double import ServingDouble
from cellvision.cli import main
from cellvision.cloud import sdk
from cellvision.cloud.endpoint import name_endpoint
from cellvision.cloud.options import VARIABLES
from cellvision.data.livedead import write_livedead_folder
from cellvision.data.synthetic import SyntheticLiveDead

GOLDEN = ROOT / "tests/golden/azure/pipeline.yml"
DRY = ("target=azure", "hydra.launcher.dry_run=true")
SUBMIT = (
    "target=azure",
    "hydra.launcher.allow_dirty=true",
    *(f"hydra.launcher.{k}={v}" for k, v in WORKSPACE.items()),
)
WORKSPACE_NAMES = {"resource_group": "resource_group_name", "workspace": "workspace_name"}
DATA = ["data=livedead", "data.root=azureml:wells:7"]
ENDPOINT = name_endpoint(SimpleNamespace(**{WORKSPACE_NAMES.get(k, k): v for k, v in WORKSPACE.items()}), "livedead")
WORKSPACE_ID = (
    f"/subscriptions/{WORKSPACE['subscription_id']}/resourceGroups/cells"
    "/providers/Microsoft.MachineLearningServices/workspaces/lab"
)
SKU = {"name": "Default", "capacity": 1}
STEPS = ["prepare", "train", "compress", "export", "evaluate", "register", "deploy"]


def give(**settings):
    return [f"settings.{name}={json.dumps(words, separators=(',', ':'))}" for name, words in settings.items()]


@pytest.fixture(scope="module")
def azure():
    with install(ServingDouble()) as double:
        yield double


@pytest.fixture
def pipeline(azure, tmp_path):
    """``pipeline.py`` with some settings, as if it had been started."""
    azure.clear()
    with open_scripts(tmp_path) as start:
        yield partial(start, "pipeline.py")


def read_ledger(folder):
    return json.loads((folder / "azure_jobs.json").read_text())["jobs"]


def test_a_dry_run_writes_the_pipeline_that_it_should(pipeline, azure, tmp_path, capsys):
    """After a change that was meant: CELLVISION_WRITE_GOLDEN=1 writes it anew, to be looked at before a commit."""
    from azure.ai.ml import load_job

    folder = tmp_path / "run"
    pipeline(*DRY, f"folder={folder}", *give(data=DATA), "hydra.launcher.gpus=2", "hydra.launcher.timeout_hours=2")
    text = (folder / "pipeline.yml").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert text in printed
    assert "azure     1 valid job, not submitted: hydra.launcher.dry_run=true" in printed
    with sdk.quiet_sdk():
        assert load_job(folder / "pipeline.yml").type == "pipeline"
    text = normalise(text, folder)
    if os.environ.get("CELLVISION_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
    assert not azure.calls


def test_its_steps_are_those_of_the_local_chain(pipeline, azure, tmp_path):
    pipeline(*SUBMIT, f"folder={tmp_path / 'run'}", "hydra.launcher.gpus=0")
    ((name, job),) = azure.jobs.items()
    assert (job["jobType"], list(job["jobs"])) == ("Pipeline", STEPS)
    assert job["tags"]["cellvision.sweep"] == "run"
    nodes = job["jobs"]
    bound = {step: {key: given["value"] for key, given in nodes[step].get("inputs", {}).items()} for step in STEPS}
    assert bound["compress"] == {"train": "${{parent.jobs.train.outputs.train}}"}
    assert bound["export"] == {"compress": "${{parent.jobs.compress.outputs.compress}}"}
    assert set(bound["evaluate"]) == {"bundle", "validation"}
    assert set(bound["register"]) == {"bundle", "scores_bundle"}
    assert bound["deploy"]["registered"] == "${{parent.jobs.register.outputs.registered}}"
    assert "--registered ${{inputs.registered}}/registered.json" in azure.read_component(name, "deploy")["command"]
    for step in STEPS:
        acts = step in ("register", "deploy")
        assert (nodes[step].get("identity") is not None) == acts
        component = azure.read_component(name, step)
        assert component["is_deterministic"] == (not acts)
        variables = dict(component.get("environment_variables", {}))
        variables |= nodes[step].get("environment_variables", {})
        assert (variables.get("AZURE_ML_WORKSPACE") == "lab") == acts
    (entry,) = read_ledger(tmp_path / "run")
    assert (entry["job"], entry["status"]) == (name, "Queued")


def test_the_same_command_again_joins_it_and_uploads_nothing(pipeline, azure, tmp_path, capsys):
    start = [*SUBMIT, *give(data=["data=livedead", "data.root=azureml:wells:latest"])]
    azure.add_data("wells", versions=7)
    pipeline(*start, f"folder={tmp_path / 'run'}")
    (first,) = azure.jobs
    uploads = azure.count("^PUT /")
    pipeline(*start, f"folder={tmp_path / 'again'}")
    assert (list(azure.jobs), azure.count("^PUT /")) == ([first], uploads)
    assert f"{first} is there: Queued" in capsys.readouterr().out
    azure.set_status(first, "Failed")
    pipeline(*start, f"folder={tmp_path / 'again'}")
    assert list(azure.jobs) == [first, f"{first}-r2"]
    assert azure.jobs[first]["inputs"]["data__root"]["uri"].endswith("/data/wells/versions/7")


REFUSED = [
    (["target=azure", "hydra.launcher.allow_dirty=true"], "no workspace for submitting jobs: .* no config.json was fo"),
    ([*DRY, *give(data=["data=livedead", "data.root=runs/a"])], r"data\.root=runs/a, a path of this machine"),
    ([*DRY, *give(train=["trainer=cpu"])], "trainer=cpu for a job on Azure; need hydra.launcher.gpus to say it"),
    ([*DRY, "hydra.launcher.gpus=-1"], "hydra.launcher.gpus=-1; need a whole number from 0 up"),
    ([*DRY, "hydra.launcher.download=true"], "hydra.launcher.download=true with a pipeline; need no such option"),
    ([*DRY, "name=a b"], "name 'a b'; need letters, digits, _ and -"),
    (
        [*DRY, *give(data=["data=livedead", "data.root=azureml:a:1"], train=["data.root=azureml:a:2"])],
        r"data\.root of two data assets, azureml:a:1 and azureml:a:2; need one for all steps",
    ),
    ([*DRY, *give(deploy=["--rollback"])], "settings.deploy entry '--rollback'; need none of these: what"),
    ([*DRY, *give(deploy=["--instances=0"])], "--instances 0; need a whole number from 1 up"),
    ([*DRY, "keep=maybe"], "keep='maybe'; need true or false; try: keep=false"),
    ([*DRY, "settings.data='seed=1'"], "settings.data=seed=1; need a list of settings; try: 'settings.data="),
    ([*DRY, "settings.compress=false"], "settings.compress=false; need a list of settings; try: settings.compress=nu"),
    ([*DRY, "metric=null"], "metric=null; need a value"),
    ([*DRY, "hydra.launcher.timeout_hours=0"], "hydra.launcher.timeout_hours=0.0; need a number from 0.02 up"),
    ([*DRY, "models=runs/models"], "models=.*runs/models with target=azure; need the registry of the workspace, as no"),
    ([*DRY, "host=127.0.0.1"], "host=127.0.0.1 with target=azure; need none, as an endpoint has an address of its"),
    ([*DRY, "port=8000"], "port=8000 with target=azure; need none"),
    ([*DRY, "keep=false"], "keep=false with target=azure; need an endpoint that stays; try: leave keep out"),
    ([*DRY, *give(deploy=["--port=80"])], "--port with --models azureml; need no such option there"),
    ([*DRY, *give(deploy=["--theads=2"])], "unrecognized arguments: --theads=2; need options of cellvision deploy"),
    ([*DRY, *give(deploy=["--models=a"])], "--models a in settings.deploy with target=azure; need the registry"),
    ([*DRY, *give(compress=["compress.prune.mcas=0.5"])], "step compress: unknown setting 'compress.prune.mcas'"),
    ([*DRY, *give(compress=["compress.distill.teacher=/dev/null"])], "compress.distill.teacher=/dev/null, a pa"),
    (["target=aws"], "unknown target 'aws'; need one of: azure"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_cannot_be_submitted_is_one_sentence(pipeline, tmp_path, capsys, settings, said):
    with pytest.raises(SystemExit) as left:
        pipeline(f"folder={tmp_path / 'run'}", *settings)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(f"error: {said}", line), line


@pytest.mark.parametrize("place", ["code/plate.tif", "code/src/cellvision/git_state.py", "environment/Dockerfile"])
def test_files_of_somebody_else_are_not_replaced(pipeline, tmp_path, capsys, place):
    """Nor is a clone of this repository taken for the copy of an earlier pipeline."""
    precious = tmp_path / "run" / place
    precious.parent.mkdir(parents=True)
    precious.touch()
    with pytest.raises(SystemExit):
        pipeline(*DRY, f"folder={tmp_path / 'run'}")
    assert f"{tmp_path / 'run' / place.split('/')[0]}, which no pipeline has written" in capsys.readouterr().err
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [precious]
    pipeline(*DRY, f"folder={tmp_path / 'again'}")
    pipeline(*DRY, f"folder={tmp_path / 'again'}")  # its own copy is replaced


def test_what_an_earlier_run_here_has_made_is_no_more_in_azure_than_anything_else(pipeline, tmp_path, capsys):
    left = tmp_path / "run" / "train" / "checkpoints" / "best.ckpt"
    left.parent.mkdir(parents=True)
    left.touch()
    pipeline(*DRY, f"folder={tmp_path / 'run'}")  # what steps hand on is wired
    with pytest.raises(SystemExit):
        pipeline(*DRY, f"folder={tmp_path / 'run'}", *give(compress=[f"compress.distill.teacher={left}"]))
    assert f"compress.distill.teacher={left}, a path of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        ("PUT jobs/", 403, r"Azure forbids submitting cv-.*; need the role 'AzureML Data Scientist' on the workspace"),
        ("GET onlineEndpoints/", 403, r"Azure forbids looking for the endpoint of livedead"),
        ("PUT components/", 404, r"Azure does not know what submitting .* names"),
        ("PUT jobs/", 409, r"submitting .* clashes with what Azure has already"),
    ],
)
def test_each_fault_is_one_sentence(pipeline, azure, tmp_path, capsys, call, status, said):
    azure.fail(call, status)
    with pytest.raises(SystemExit) as left:
        pipeline(*SUBMIT, f"folder={tmp_path / 'run'}")
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(said, line), line
    assert not azure.jobs


SMALL = [
    *("data.workers=0", "data.batch_size=1", "data.draws_per_epoch=1", "data.augment.crop.size=32"),
    *("model.widths=[8,16]", "trainer.max_epochs=1", "logger=csv", "callbacks.pictures=null"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes that import torch
def test_the_submitted_steps_lead_from_data_to_a_registered_bundle(pipeline, azure, tmp_path, monkeypatch):
    """Execute what nodes would: the snapshot in a clean folder for each, inputs and outputs in the place of Azure's."""
    azure.add_data("wells", versions=2)
    settings = give(data=["data=livedead", "data.root=azureml:wells:latest"], train=SMALL, export=["samples=1"])
    more = ["settings.compress=null", "hydra.launcher.gpus=0", "metric=pixel/miou", "at_least=null"]
    pipeline(*SUBMIT, *settings, *more, f"folder={tmp_path / 'run'}")
    ((name, job),) = azure.jobs.items()
    fields = SyntheticLiveDead(fields=3, height=64, width=64, cells=(3, 4))
    write_livedead_folder(fields, tmp_path / "wells", splits={"train": [0], "val": [1, 2]})
    steps = ["prepare", "train", "export", "evaluate"]
    assert list(job["jobs"]) == [*steps, "register", "deploy"]
    for step in steps:
        azure.unpack(name, tmp_path / step)
        command, variables = place(azure, name, step, tmp_path)
        done = execute(command, tmp_path / step, variables)
        assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "outputs/scores_bundle/scores_bundle.json").read_text())
    assert scores["data"]["images"] == 2
    for key, variable in VARIABLES.items():
        monkeypatch.setenv(variable, WORKSPACE[key])
    words = shlex.split(place(azure, name, "register", tmp_path)[0])
    assert words[:3] == ["python", "-m", "cellvision"]
    assert main(words[3:]) == 0
    assert azure.models["livedead/1"]["tags"]["score.pixel.miou"] == str(scores["scores"]["pixel/miou"])
    assert azure.models["livedead/1"]["tags"]["git"] == f"{COMMIT} with changes"
    assert azure.models["livedead/1"]["tags"]["data.root"] == "azureml:wells:2"
    assert json.loads((tmp_path / "outputs/registered/registered.json").read_text())["version"] == 1


def place(azure, name, step, folder):
    """The command of a step with folders in the place of inputs and outputs, which are there; and its variables."""
    component = azure.read_component(name, step)
    command, variables = component["command"], component.get("environment_variables", {})
    for output in re.findall(r"\${{outputs\.(\w+)}}", command):
        (folder / "outputs" / output).mkdir(parents=True, exist_ok=True)
    command = command.replace("${{inputs.data__root}}", str(folder / "wells"))
    command = re.sub(r"\${{(?:inputs|outputs)\.(\w+)}}", rf"{folder}/outputs/\1", command)
    assert "${{" not in command
    return command, variables | azure.jobs[name]["jobs"][step].get("environment_variables", {})


def execute(command, folder, variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COVERAGE"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= variables
    words = ["bash", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_the_version_in_production_is_an_input_and_scored_beside(pipeline, azure, tmp_path):
    version, endpoint = "models/livedead/versions/3", f"onlineEndpoints/{ENDPOINT}"
    deployment = f"{endpoint}/deployments/blue"
    served = {"model": f"{WORKSPACE_ID}/{version}", "endpointComputeType": "Managed"}
    served["scaleSettings"] = {"scaleType": "Default"}
    answers = {"traffic": {"blue": 100}, "authMode": "Key", "scoringUri": "https://a"}
    model = {"modelUri": "azureml://m", "modelType": "custom_model", "flavors": {}, "tags": {}}
    for path, properties in ((version, model), (endpoint, answers), (deployment, served)):
        facts = {"name": path.split("/")[-1], "location": "westeurope", "sku": SKU, "properties": properties}
        azure.resources[path] = {"id": f"{WORKSPACE_ID}/{path}", **facts}
    pipeline(*SUBMIT, f"folder={tmp_path / 'run'}")
    ((name, job),) = azure.jobs.items()
    assert job["inputs"]["production"]["jobInputType"] == "custom_model"
    assert job["inputs"]["production"]["uri"].endswith("livedead/versions/3")
    command = azure.read_component(name, "evaluate_production")["command"]
    assert "--bundle ${{inputs.production}} --images ${{inputs.validation}}/validation/images" in command
    assert "--production-scores ${{inputs.scores_production}}/" in azure.read_component(name, "register")["command"]
    del azure.resources[endpoint], azure.resources[deployment]
    pipeline(*SUBMIT, f"folder={tmp_path / 'run'}")
    assert list(azure.jobs) == [name]  # another version in production, or none, is no other pipeline
