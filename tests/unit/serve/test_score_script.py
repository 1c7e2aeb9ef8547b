"""The scoring script of a managed endpoint, called as the endpoint calls it."""

import base64
import json
import shutil
import sys
import types

import pytest
import tifffile

from cellvision.errors import BundleError, ConfigError
from cellvision.runtime.predictor import Predictor
from cellvision.serve import score
from stain_net import draw_cells


@pytest.fixture
def model_dir(stain_bundle, tmp_path, monkeypatch):
    """As an endpoint lays a registered folder out."""
    shutil.copytree(stain_bundle, tmp_path / "model" / "bundle")
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path / "model"))
    monkeypatch.setenv("CELLVISION_THREADS", "1")
    return tmp_path / "model"


@pytest.fixture
def field(tmp_path):
    image = draw_cells((100, 120), [(20, 20), (30, 70), (70, 30)], 12, dead={1})
    tifffile.imwrite(tmp_path / "field.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
    return tmp_path / "field.tif"


def ask(field, **more):
    return score.run(json.dumps({"image": base64.b64encode(field.read_bytes()).decode(), **more}))


@pytest.mark.usefixtures("model_dir")
def test_cells_are_those_of_the_predictor(stain_bundle, field, tmp_path):
    score.init()
    found = ask(field, pixel_size_um=0.5, channels=["nuclei", "PI"], name="field.tif")
    cells = Predictor(stain_bundle, threads=1)(tifffile.imread(field), pixel_size_um=0.5)
    assert [{k: v for k, v in row.items() if k != "bbox"} for row in found["cells"]] == list(cells.to_rows())
    assert found["counts"] == {"live": 2, "dead": 1}
    labels = ask(field, answer="labels", pixel_size_um=None, name="field.tif")
    Predictor(stain_bundle, threads=1).predict_to_folder(field, tmp_path / "out")
    assert labels["file_name"] == "field_labels.tif"
    assert base64.b64decode(labels["content"]) == (tmp_path / "out" / "field_labels.tif").read_bytes()
    assert [each["id"] for each in ask(field, answer="coco")["annotations"]] == [1, 2, 3]


@pytest.mark.usefixtures("model_dir")
@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("no json", "a request that is no such JSON; need an image in base64; try: "),
        (b"[1]", "a request that is no such JSON"),
        ("{}", "a request that is no such JSON"),
        ('{"image": "***"}', "a request that is no such JSON"),
        ('{"image": "JVBERg=="}', "the image is no image that can be read; need TIFF, PNG or JPEG; try: "),
        ('{"image": "", "size": 3}', "unknown parameter 'size'; need one of: "),
    ],
)
def test_bad_requests_are_one_sentence(raw, said):
    score.init()
    reply = score.run(raw)
    assert list(reply) == ["error"]
    assert reply["error"].startswith(said)
    assert "/" not in reply["error"]


@pytest.mark.usefixtures("model_dir")
def test_the_endpoints_own_package_gets_the_status(monkeypatch, field):
    class Reply:
        def __init__(self, content, status):
            self.content, self.status = content, status

    module = types.SimpleNamespace(AMLResponse=Reply)
    for name in ("azureml", "azureml.contrib", "azureml.contrib.services"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "azureml.contrib.services.aml_response", module)
    score.init()
    assert (score.run("x").status, list(json.loads(score.run("x").content))) == (400, ["error"])
    monkeypatch.setattr(Predictor, "predict_to_folder", lambda *_, **__: 1 / 0)
    assert ask(field).status == 500
    assert ask(field).content == '{"error": "the image could not be worked on; the server\'s log says why"}'


def test_a_folder_without_one_bundle(model_dir, monkeypatch):
    shutil.copytree(model_dir / "bundle", model_dir / "again")
    with pytest.raises(BundleError, match=r"2 bundles below AZUREML_MODEL_DIR=.*; need one; try: register"):
        score.init()
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(model_dir / "none"))
    with pytest.raises(BundleError, match="0 bundles below"):
        score.init()


@pytest.mark.usefixtures("model_dir")
def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("CELLVISION_THREADS", "two")
    with pytest.raises(ConfigError, match="CELLVISION_THREADS='two'; need a whole number; try: CELLVISION_THREADS=2"):
        score.init()
