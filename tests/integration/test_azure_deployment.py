"""Models of a workspace: registered behind the gate, deployed blue and green, and back again on any fault."""

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

pytest.importorskip("azure.core", reason="needs the azure extra")

from azure.core.exceptions import ServiceRequestError

from azure_double import WORKSPACE
from azure_serving_double import ServingDouble
from cellvision.bundle import load_manifest
from cellvision.cli import main
from cellvision.cloud import endpoint, sdk
from cellvision.cloud.endpoint import _going_back
from cellvision.cloud.options import VARIABLES
from cellvision.cloud.serving import EndpointOptions, build_deployment, describe_packages
from cellvision.release.process import DeployError
from stain_net import build_graph, draw_cells, write_bundle


@pytest.fixture(scope="module")
def installed():
    double = ServingDouble()
    with sdk.quiet_sdk(), pytest.MonkeyPatch.context() as patch:
        double.install(patch)
        for name, variable in VARIABLES.items():
            patch.setenv(variable, WORKSPACE[name])
        yield double


@pytest.fixture
def azure(installed, tmp_path):
    installed.clear()
    installed.folder = tmp_path / "served"
    return installed


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Bundles by name, of which one is blind, and a field with cells."""
    folder = tmp_path_factory.mktemp("shop")
    scales = {"one": 1.0, "two": 1.1, "three": 1.2, "blind": 1e-3}
    made = {"recipe": ({"step": "prune"},), "provenance": {"data_fingerprint": "wells:7"}}
    for name, scale in scales.items():
        write_bundle(folder / name, build_graph(scale=scale), **made)
    image = draw_cells((100, 120), [(20, 20), (30, 70), (70, 30)], 12, dead={1})
    tifffile.imwrite(folder / "field.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
    return folder


def register(shop, name, value, *options):
    graph = load_manifest(shop / name).graphs[0].sha256
    scores = {"scores": {"cell/f1": value}, "data": {"fingerprint": "f", "images": 3}, "graph_sha256": graph}
    path = shop / f"{name}_scores.json"
    path.write_text(json.dumps(scores))
    words = ["--models", "azureml", "--name", "cells", "--scores", path, "--metric", "cell/f1", "--at-least", "0.5"]
    return main(["register", *map(str, [shop / name, *words, *options])])


def deploy(shop, *options):
    return main(["deploy", "cells", "--models", "azureml", "--sample", str(shop / "field.tif"), *options])


def test_a_model_is_registered_with_all_that_is_known_of_it(azure, shop, capsys):
    assert register(shop, "one", 0.7, "--tag", "plate=A1") == 0
    assert capsys.readouterr().out == "registered cells version 1: cell/f1 0.7 (at least 0.5)\n"
    ((name, model),) = azure.models.items()
    assert (name, model["modelType"]) == ("cells/1", "custom_model")
    kept = {key: model["tags"][key] for key in ("recipe", "training_data", "score.cell.f1", "gate.metric", "plate")}
    assert kept == {
        "recipe": "prune",
        "training_data": "wells:7",
        "score.cell.f1": "0.7",
        "gate.metric": "cell/f1",
        "plate": "A1",
    }
    uploads = azure.count("^PUT /")
    assert register(shop, "one", 0.7) == 0
    assert (list(azure.models), azure.count("^PUT /")) == (["cells/1"], uploads)


def test_what_is_worse_is_refused_by_the_same_gate_as_in_a_folder(azure, shop, capsys):
    assert register(shop, "one", 0.4) == 2
    assert "cellvision: cell/f1 0.4; need at least 0.5; try: train longer" in capsys.readouterr().err
    assert register(shop, "one", 0.7) == 0
    assert deploy(shop) == 0
    assert register(shop, "two", 0.6) == 2
    said = "cell/f1 0.6, and cells version 1, which is in production, has 0.7; need at least as much"
    assert said in capsys.readouterr().err
    assert register(shop, "two", 0.8) == 0
    assert azure.models["cells/2"]["tags"]["gate.production_value"] == "0.7"
    assert register(shop, "three", 0.9, "--production-scores", str(shop / "two_scores.json")) == 2
    assert "production scores of another bundle than cells version 1" in capsys.readouterr().err
    assert list(azure.models) == ["cells/1", "cells/2"]


def test_what_was_registered_is_deployed_and_not_the_newest(azure, shop, tmp_path):
    assert register(shop, "one", 0.7, "--json", str(tmp_path / "registered.json")) == 0
    assert register(shop, "two", 0.8) == 0
    assert deploy(shop, "--registered", str(tmp_path / "registered.json")) == 0
    assert azure.deployments == {"blue": "1"}


def test_blue_goes_green_and_back(azure, shop, capsys):
    assert register(shop, "one", 0.7) == 0
    assert deploy(shop, "--threads", "1") == 0
    assert (azure.traffic, azure.deployments) == ({"blue": 100}, {"blue": "1"})
    deployment = next(body["properties"] for key, body in azure.resources.items() if key.endswith("/blue"))
    assert deployment["codeConfiguration"]["scoringScript"] == "score.py"
    assert deployment["environmentVariables"]["CELLVISION_THREADS"] == "1"
    assert register(shop, "two", 0.8) == 0
    capsys.readouterr()
    assert deploy(shop) == 0
    assert (azure.traffic, azure.deployments) == ({"green": 100}, {"green": "2"})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["starting", "testing", "live", "ended", "cells"]
    assert printed[1] == "testing   3 cells in field.tif"
    (name,) = azure.endpoints
    url = f"https://{name.split('/')[1]}.westeurope.inference.ml.azure.com/score"
    assert printed[-1] == f"cells version 2 is in production on {url}"
    assert deploy(shop, "--rollback") == 0
    assert (azure.traffic, azure.deployments) == ({"blue": 100}, {"blue": "1"})
    assert deploy(shop, "--rollback") == 2
    assert "cells had no version in production before; need one to go back to" in capsys.readouterr().err
    assert main(["models", "--models", "azureml"]) == 0
    listed = capsys.readouterr().out
    assert "cells version 1 answers on https://cells" in listed
    assert azure.scored == ["blue", "green", "blue"]


NAMES = [
    ("nuclei_hoechst_20x_confocal_day1", "nuclei_hoechst_20x_confocal_day2"),
    ("live_dead", "live-dead"),
    ("cells", "Cells"),
]


@pytest.mark.parametrize(("one", "two"), NAMES)
def test_each_model_has_an_endpoint_of_its_own(azure, shop, capsys, one, two):
    for bundle, name, value in (("one", one, 0.9), ("two", two, 0.5)):
        assert register(shop, bundle, value, "--name", name) == 0
        assert main(["deploy", name, "--models", "azureml", "--sample", str(shop / "field.tif")]) == 0
        said = capsys.readouterr().out
        assert "ended" not in said
        assert f"{name} version 1 is in production" in said
    assert len(azure.endpoints) == 2
    for path in azure.endpoints:
        assert re.fullmatch(r"onlineEndpoints/[a-z][a-z0-9-]{1,30}[a-z0-9]", path)
        assert azure.list_deployments(path) == {"blue": "1"}


def test_an_endpoint_that_serves_another_model_is_left_alone(azure, shop, capsys):
    assert register(shop, "one", 0.7) == 0
    assert deploy(shop) == 0
    (body,) = (body for path, body in azure.resources.items() if path.endswith("/blue"))
    body["properties"]["model"] = body["properties"]["model"].replace("/cells/", "/others/")
    assert register(shop, "two", 0.8) == 2
    said = capsys.readouterr().err
    assert re.search(r"cells-\w{6}/blue serves .*/models/others/versions/1; need a registered version of cells", said)


FAULTS = [
    ("PUT onlineEndpoints/.*/deployments/", 400, "Azure refuses deploying cells version 2 with 400"),
    ("PUT onlineEndpoints/.*/deployments/", 403, "Azure forbids deploying cells version 2"),
    ("POST /score", 500, "the connection to Azure broke in asking cells-.*/green for the cells of field.tif"),
    ("PUT onlineEndpoints/[^/]*$", 409, "sending requests of cells-.* to green clashes with what Azure has"),
    ("POST onlineEndpoints/.*/listKeys", 404, "Azure does not know what asking cells-.*/green .* names"),
]


@pytest.mark.parametrize(("call", "status", "said"), FAULTS)
def test_any_fault_leaves_requests_where_they_were_and_the_new_deployment_is_deleted(
    azure, shop, capsys, call, status, said
):
    assert register(shop, "one", 0.7) == 0
    assert deploy(shop) == 0
    assert register(shop, "two", 0.8) == 0
    azure.fail(call, status)
    assert deploy(shop) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # the SDK tells what it looks for before
    assert re.search(said, line), line
    assert (azure.traffic, azure.deployments) == ({"blue": 100}, {"blue": "1"})
    azure.faults.clear()
    assert deploy(shop) == 0
    assert (azure.traffic, azure.deployments) == ({"green": 100}, {"green": "2"})


def test_a_blind_version_does_not_go_live(azure, shop, capsys):
    assert register(shop, "one", 0.7) == 0
    assert deploy(shop) == 0
    assert register(shop, "blind", 0.9) == 0
    capsys.readouterr()
    assert deploy(shop) == 2
    printed = capsys.readouterr()
    assert "cells version 2 finds no cell in field.tif; need at least one" in printed.err
    assert "going back to version 1" in printed.out
    assert (azure.traffic, azure.deployments) == ({"blue": 100}, {"blue": "1"})
    assert azure.scored == ["blue", "green"]


def test_a_field_that_the_script_refuses_is_told_in_its_words(azure, shop, tmp_path, capsys):
    assert register(shop, "one", 0.7) == 0
    (tmp_path / "field.tif").write_bytes(b"no image")
    assert main(["deploy", "cells", "--models", "azureml", "--sample", str(tmp_path / "field.tif")]) == 2
    assert re.search(r"cells-.*/blue answers to field.tif: .*TIFF", capsys.readouterr().err)
    assert (azure.traffic, azure.deployments) == ({}, {})


def test_ctrl_c_takes_the_new_deployment_with_it(azure, shop, monkeypatch):
    assert register(shop, "one", 0.7) == 0

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(endpoint, "_check", interrupt)
    assert deploy(shop) == 130
    assert (azure.traffic, azure.deployments) == ({}, {})


SERVER = """
import base64, importlib.util, json, os, pathlib, sys

script, packages, bundle, image = map(pathlib.Path, sys.argv[1:])
sys.path += [str(packages), str(script.parent)]
os.environ["AZUREML_MODEL_DIR"] = str(bundle)
spec = importlib.util.spec_from_file_location("entry_module", script)
entry = importlib.util.module_from_spec(spec)
spec.loader.exec_module(entry)
assert pathlib.Path(sys.modules["cellvision"].__file__).is_relative_to(script.parent)
entry.init()
print(entry.run(json.dumps({"image": base64.b64encode(image.read_bytes()).decode()}))["count"])
"""


def test_the_uploaded_code_runs_as_the_server_loads_it(shop):
    """Of a deployment's code the server knows the folder of the script alone; this library is installed nowhere."""
    version = SimpleNamespace(name="cells", version=1)
    packages = Path(tifffile.__file__).parents[1]
    with build_deployment(version, endpoint="cells", colour="blue", options=EndpointOptions()) as made:
        script = Path(made.code_configuration.code) / made.code_configuration.scoring_script
        words = [sys.executable, "-I", "-S", "-c", SERVER, script, packages, shop / "one", shop / "field.tif"]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_an_archived_version_keeps_its_number_and_is_not_the_newest(azure, shop, capsys):
    assert register(shop, "one", 0.7) == 0
    assert register(shop, "two", 0.8) == 0
    azure.models["cells/2"]["isArchived"] = True
    assert deploy(shop) == 0
    assert azure.deployments == {"blue": "1"}
    assert register(shop, "three", 0.9) == 0
    assert sorted(azure.models) == ["cells/1", "cells/2", "cells/3"]
    azure.models["cells/1"]["isArchived"] = True  # it answers still
    capsys.readouterr()
    assert register(shop, "two", 0.6) == 2
    assert "cells version 1, which is in production, has 0.7" in capsys.readouterr().err


def test_fields_too_large_for_a_request_are_not_sent(azure, shop, tmp_path, capsys):
    assert register(shop, "one", 0.7) == 0
    image = np.zeros((2, 800, 900), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
    words = ["deploy", "cells", "--models", "azureml", "--sample", str(tmp_path)]
    assert main(words) == 2
    assert re.search(r"a\.tif, of which a request has 38\d{5} bytes; need at most 1500000; ", capsys.readouterr().err)
    assert not azure.count("PUT onlineEndpoints")
    shutil.copy(shop / "field.tif", tmp_path / "b.tif")
    assert main(words) == 0
    assert "3 cells in b.tif" in capsys.readouterr().out


def test_what_cannot_be_deleted_is_said(azure, shop, capsys):
    assert register(shop, "one", 0.7) == 0
    assert deploy(shop) == 0
    assert register(shop, "two", 0.8) == 0
    azure.fail("DELETE", 409)
    assert deploy(shop) == 0
    assert "az ml online-deployment delete --name blue --endpoint-name cells-" in capsys.readouterr().out
    assert azure.traffic == {"green": 100}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deploy", "cells"], "no image to try cells on; need one with cells; try: --sample IMAGE"),
        (["deploy", "cells", "--port", "8000"], "--port with --models azureml; need no such option there"),
        (["deploy", "cells", "--stop"], "--stop with --models azureml"),
        (["deploy", "none", "--sample", "FIELD"], "unknown model 'none'; need one of: cells"),
        (["deploy", "cells", "--version", "7", "--sample", "FIELD"], "cells version 7; need one of 1; try: 1"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(azure, shop, capsys, words, said):
    assert register(shop, "one", 0.7) == 0
    given = [str(shop / "field.tif") if word == "FIELD" else word for word in words]
    assert main([*given, "--models", "azureml"]) == 2
    assert said in capsys.readouterr().err
    assert not azure.count("PUT onlineEndpoints")


def test_no_workspace_and_half_a_workspace_are_one_sentence(azure, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AZURE_RESOURCE_GROUP")
    assert main(["models", "--models", "azureml"]) == 2
    assert "no AZURE_RESOURCE_GROUP; need all three in the environment" in capsys.readouterr().err
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID")
    monkeypatch.delenv("AZURE_ML_WORKSPACE")
    assert main(["models", "--models", "azureml"]) == 2
    said = capsys.readouterr().err
    assert "no workspace for listing models: none is named and no config.json was found; need one; try: AZURE_" in said
    assert "dry_run" not in said


def test_the_packages_are_those_of_the_runtime_alone():
    found = describe_packages()["dependencies"]
    assert found[0] == f"python={sys.version_info.major}.{sys.version_info.minor}"
    pinned = dict(text.split("==") for text in found[-1]["pip"])
    assert pinned["onnxruntime"] == metadata.version("onnxruntime")
    assert "azureml-inference-server-http" in pinned
    assert "torch" not in pinned


def test_the_new_deployment_is_deleted_where_the_network_fails_too(azure):
    """Nobody can tell then where requests go; Azure itself deletes none that gets some."""
    deleted = []

    def get(_):
        raise ServiceRequestError("gone")

    def begin_delete(*, name, endpoint_name):
        deleted.append((endpoint_name, name))
        return SimpleNamespace(result=lambda: None)

    client = SimpleNamespace(
        online_endpoints=SimpleNamespace(get=get), online_deployments=SimpleNamespace(begin_delete=begin_delete)
    )
    with (
        pytest.raises(DeployError, match="what went wrong first"),
        _going_back(client, "cells", "green", None, print),
    ):
        raise DeployError("what went wrong first")
    assert deleted == [("cells", "green")]


@pytest.mark.parametrize("tag", ["fields=48", "gate.metric=cell/f1", "score.cell.f2=good", "graphs=zzz"])
def test_tags_of_the_registry_are_its_own_and_those_of_the_portal_break_nothing(azure, shop, capsys, tag):
    assert register(shop, "one", 0.7, "--tag", tag) == 2
    assert f"cellvision: tag {tag.partition('=')[0]}, which the registry sets itself" in capsys.readouterr().err
    assert not azure.models
    assert main(["register", str(shop / "one"), "--models", "azureml", "--name", "cells"]) == 0
    key, _, value = tag.partition("=")
    azure.models["cells/1"]["tags"][key] = value
    capsys.readouterr()
    assert main(["models", "--models", "azureml"]) == 0
    assert "no gate" in capsys.readouterr().out
    assert deploy(shop) == 2
    assert "cells version 1, which was registered without a gate; need one that has" in capsys.readouterr().err
    assert register(shop, "two", 0.8) == 0
    assert deploy(shop) == 0


def test_another_request_is_another_model_version(azure, shop, capsys):
    assert register(shop, "one", 0.7, "--tag", "plate=A1") == 0
    for again in ([], ["--tag", "plate=A1"]):
        assert register(shop, "one", 0.7, *again) == 0
        assert list(azure.models) == ["cells/1"]
    assert register(shop, "one", 0.7, "--tag", "plate=B2") == 0
    assert register(shop, "one", 0.7, "--tag", "plate=B2", "--at-least", "0.6") == 0
    assert [model["tags"]["plate"] for model in azure.models.values()] == ["A1", "B2", "B2"]
    assert register(shop, "one", 0.7, "--at-least", "nan") == 2
    assert "at_least=nan; need a finite number" in capsys.readouterr().err


def test_a_model_of_archived_versions_alone_hides_no_other(azure, shop, capsys):
    assert register(shop, "one", 0.7) == 0
    azure.models["cells/1"]["isArchived"] = True
    assert main(["register", str(shop / "two"), "--models", "azureml", "--name", "others"]) == 0
    capsys.readouterr()
    assert main(["models", "--models", "azureml"]) == 0
    assert "others" in capsys.readouterr().out
    assert deploy(shop) == 2
    assert "cells, of which all versions are archived; need one that is not; try: cellv" in capsys.readouterr().err
    assert deploy(shop, "--version", "1") == 0
