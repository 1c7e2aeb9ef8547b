"""Answers and refusals of the HTTP interface, without a network."""

import base64
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask

from cellvision.data.images import read_label_image
from cellvision.runtime.predictor import Predictor
from cellvision.serve.limits import Limits
from dot_net import draw_dots, write_dot_bundle
from stain_net import draw_cells

pytest.importorskip("fastapi", reason='needs pip install "cellvision[serve]"')
testclient = pytest.importorskip("fastapi.testclient", reason="needs httpx")

CENTRES, DEAD = [(20, 20), (30, 70), (70, 30), (75, 90)], {1, 3}


@pytest.fixture(scope="module")
def predictor(stain_bundle):
    return Predictor(stain_bundle, threads=1)


@pytest.fixture
def field(tmp_path):
    return write_field(tmp_path / "field 1.tif")


def write_field(path, dead=DEAD, **more):
    image = draw_cells((100, 120), CENTRES, 12, dead)
    tifffile.imwrite(path, image, photometric="minisblack", metadata={"axes": "CYX"}, **more)
    return path


def open_client(predictor, **limits):
    from cellvision.serve.web import build_app

    return testclient.TestClient(build_app(predictor, limits=Limits(**limits)), raise_server_exceptions=False)


def predict(client, path, **parameters):
    return client.post("/predict", params=parameters, content=path.read_bytes())


def refuse(reply, status):
    """The sentence of a refused request, which tells nothing of the server's files."""
    assert reply.status_code == status, reply.text
    sentence = reply.json()["error"]
    assert list(reply.json()) == ["error"]
    assert "/tmp" not in sentence
    assert "cellvision-" not in sentence
    assert "\n" not in sentence
    return sentence


def test_cells_are_those_of_the_predictor(predictor, field):
    found = predict(open_client(predictor), field, pixel_size_um="0.5").json()
    cells = predictor(tifffile.imread(field), pixel_size_um=0.5)
    assert (found["count"], found["counts"]) == (4, {"live": 2, "dead": 2})
    assert found["viability"]["percent"] == 50.0
    assert (found["height_px"], found["width_px"], found["pixel_size_um"]) == (100, 120, 0.5)
    assert [{k: v for k, v in row.items() if k != "bbox"} for row in found["cells"]] == list(cells.to_rows())
    assert [row["bbox"] for row in found["cells"]] == cells.bbox.tolist()


def test_label_image_is_byte_for_byte_that_of_the_predictor(predictor, field, tmp_path):
    reply = predict(open_client(predictor), field, answer="labels")
    assert reply.headers["content-type"] == "image/tiff"
    predictor.predict_to_folder(field, tmp_path / "out")
    assert reply.content == (tmp_path / "out" / "field 1_labels.tif").read_bytes()


def test_a_form_is_as_good_as_the_file_itself(predictor, field, tmp_path):
    client = open_client(predictor)
    predictor.predict_to_folder(field, tmp_path / "out")
    reply = client.post("/predict?answer=overlay", files={"image": ("plate/field 1.tif", field.read_bytes())})
    assert reply.content == (tmp_path / "out" / "field 1_overlay.png").read_bytes()
    assert reply.headers["content-disposition"] == "inline; filename*=utf-8''field%201_overlay.png"


def test_the_overlay_comes_with_the_cells_where_asked_for(predictor, field, tmp_path):
    found = predict(open_client(predictor), field, overlay="true", name="../a/field 1.tif").json()
    predictor.predict_to_folder(field, tmp_path / "out")
    assert found["image"] == "field 1.tif"
    assert base64.b64decode(found["overlay_png"]) == (tmp_path / "out" / "field 1_overlay.png").read_bytes()
    assert "overlay_png" not in predict(open_client(predictor), field).json()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("kind", ["viability", "instance"])
def test_coco_masks_are_the_label_image(predictor, field, tmp_path, kind):
    """Decoded by pycocotools, which knows nothing of how they were made."""
    if kind == "instance":
        predictor = Predictor(write_dot_bundle(tmp_path / "dots"), threads=1)
        image = draw_dots((90, 110), [(20, 20), (22, 30), (60, 80)], [8, 8, 12], dead={2})
        tifffile.imwrite(field, image, photometric="minisblack", metadata={"axes": "CYX"})
    client = open_client(predictor)
    (tmp_path / "labels.tif").write_bytes(predict(client, field, answer="labels").content)
    labels = read_label_image(tmp_path / "labels.tif")
    found = json.loads(predict(client, field, answer="coco").content)
    painted = np.zeros_like(labels)
    for annotation in found["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        painted[mask == 1] = annotation["id"]
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert ("score" in annotation) == (kind == "instance")
    assert np.array_equal(painted, labels)
    assert found["categories"] == [{"id": 1, "name": "live"}, {"id": 2, "name": "dead"}]
    assert [each["category_id"] for each in found["annotations"]].count(2) == (2 if kind == "viability" else 1)


def test_many_at_once_get_their_own_cells(predictor, tmp_path):
    paths = [write_field(tmp_path / f"{i}.tif", dead=set(range(i))) for i in range(5)]
    client = open_client(predictor, workers=3, queue=20)
    with ThreadPoolExecutor(10) as pool:
        replies = list(pool.map(lambda path: (path, predict(client, path)), paths * 4))
    assert [reply.json()["counts"]["dead"] for path, reply in replies] == [int(path.stem) for path, _ in replies]
    assert 'cellvision_requests_total{path="/predict",status="200"} 20' in client.get("/metrics").text


def test_channels_by_name_and_other_counts(predictor, tmp_path):
    image = draw_cells((100, 120), CENTRES, 12, DEAD)
    tifffile.imwrite(tmp_path / "a.tif", (image[::-1] // 257).astype(np.uint8), photometric="minisblack")
    client = open_client(predictor)
    reply = predict(client, tmp_path / "a.tif", channels="PI, nuclei", intensity_scale="257", name="a.tif")
    assert reply.json()["counts"] == {"live": 2, "dead": 2}
    sentence = refuse(predict(client, tmp_path / "a.tif", name="a.tif"), 400)
    assert sentence == (
        "a.tif is uint8, whose counts mean something else than the training counts; need uint16; "
        "try: intensity_scale=F, the factor to the training counts (257 from 8 to 16 bits)"
    )


def test_what_the_server_is_and_what_it_takes(predictor):
    client = open_client(predictor, max_mib=7, workers=2, queue=3)
    info = client.get("/info").json()
    assert info["channels"] == [{"name": "nuclei", "role": "nuclear"}, {"name": "PI", "role": "dead"}]
    assert info["graphs"][0]["sha256"] == predictor.manifest.graphs[0].sha256
    assert info["limits"] == {"max_mib": 7, "max_megapixels": 100}
    health = client.get("/health").json()
    assert (health["status"], health["taken"], health["places"]) == ("ok", 0, 5)
    assert "/predict" in client.get("/openapi.json").json()["paths"]


def test_the_page_needs_nothing_from_elsewhere(predictor):
    reply = open_client(predictor).get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    for words in ("http://", "https://", "innerHTML"):
        assert words not in reply.text
    assert "predict?name=" in reply.text


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 415, "a.tif is empty; need TIFF, PNG or JPEG; try: the file itself as the body, or as a form"),
        (b"%PDF-1.7", 415, "a.tif is no image that can be read; need TIFF, PNG or JPEG; try: "),
        (b"II*\0broken", 400, "a.tif ends at least 1802465882 bytes early; need a complete file; try: "),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), 400, "a.tif cannot be decoded "),
    ],
)
def test_files_that_are_no_images(predictor, tmp_path, content, status, said):
    (tmp_path / "x").write_bytes(content)
    assert refuse(predict(open_client(predictor), tmp_path / "x", name="a.tif"), status).startswith(said)


def test_a_damaged_image_is_named_as_its_sender_does(predictor, field):
    field.write_bytes(field.read_bytes()[:-20000])
    sentence = refuse(predict(open_client(predictor), field, name="field 1.tif"), 400)
    assert "field 1.tif" in sentence
    assert "; need " in sentence


def test_too_many_pixels_are_refused_before_they_are_decoded(predictor, tmp_path, monkeypatch):
    Image.new("L", (2000, 1001)).save(tmp_path / "a.png")
    monkeypatch.setattr(Predictor, "predict_to_folder", lambda *_, **__: pytest.fail("decoded in vain"))
    sentence = refuse(predict(open_client(predictor, max_megapixels=2), tmp_path / "a.png", name="a.png"), 413)
    assert sentence.startswith("a.png is 1001x2000 px; need at most 2 million pixels; try: ")
    assert "--max-megapixels" in sentence


def test_too_many_bytes(predictor, tmp_path):
    (tmp_path / "a").write_bytes(bytes(2**20 + 1))
    client = open_client(predictor, max_mib=1)
    said = "an upload of too many bytes; need at most 1 MiB; try: a compressed TIFF, or a server with more --max-mib"
    assert refuse(predict(client, tmp_path / "a"), 413) == said
    pieces = iter([(tmp_path / "a").read_bytes()] * 2)  # sent in chunks, without its length in front
    assert refuse(client.post("/predict", content=pieces), 413) == said
    assert refuse(client.post("/predict", files={"image": ("a", bytes(2**21))}), 413) == said


def test_an_image_too_large_for_the_memory(stain_bundle, tmp_path):
    Image.fromarray(np.zeros((1200, 1200), np.uint16)).save(tmp_path / "a.png")
    predictor = Predictor(stain_bundle, threads=1, memory_mib=1)
    sentence = refuse(predict(open_client(predictor), tmp_path / "a.png", channels="nuclei", name="a.png"), 400)
    assert "PI once among them" in sentence
    write_field(tmp_path / "b.tif")
    sentence = refuse(predict(open_client(predictor), tmp_path / "b.tif", name="b.tif"), 413)
    assert sentence.startswith("b.tif is too large for this server's memory; need ")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"anser": "coco"}, "unknown parameter 'anser'; need one of: answer, channels, .*; try: 'answer'"),
        ({"answer": "csv"}, "unknown answer 'csv'; need one of: cells, coco, labels, overlay; try: "),
        ({"overlay": "yes"}, "unknown overlay 'yes'; need one of: 0, 1, false, true; try: "),
        ({"pixel_size_um": "a"}, "pixel_size_um='a'; need a number; try: pixel_size_um=0.65"),
        ({"pixel_size_um": "nan"}, "pixel_size_um=nan; need a number of micrometres from 0.0001 to 1000000; try: "),
        ({"intensity_scale": "-1"}, "intensity_scale=-1.0; need a factor from 1e-9 to 1e9; try: intensity_scale=257"),
        ({"channels": "a"}, "1 channel names .* for the image of 2 channels; need one name per channel; try: channels"),
    ],
)
def test_bad_parameters(predictor, field, parameters, said):
    assert re.match(said, refuse(predict(open_client(predictor), field, **parameters), 400))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": {"a": "b"}, "files": {}}, "the image is no image that can be read"),  # a form without parts
        ({"files": {"note": (None, "text")}}, "a form without a file; need a form with one file; try: curl -F"),
        ({"files": [("a", ("a", b"1")), ("b", ("b", b"2"))]}, r"a form that cannot be read \(Too many files"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "a form that cannot be read"),
    ],
)
def test_forms_that_are_none(predictor, given, said):
    reply = open_client(predictor).post("/predict", **given)
    assert re.match(said, refuse(reply, reply.status_code))
    assert reply.status_code in (400, 415)


def test_other_addresses_and_methods(predictor):
    client = open_client(predictor)
    assert refuse(client.get("/predict"), 405).startswith("GET /predict; need POST; try: curl ")
    assert refuse(client.post("/wp-login.php", content=b"x"), 404).startswith("POST /wp-login.php; need one of /, ")
    assert 'path="other",status="404"} 1' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RuntimeError("a secret place"), 500, "the image could not be worked on; the server's log says why"),
        (MemoryError(), 503, "no memory left for the image; need some; try: the same again in a while"),
    ],
)
def test_faults_of_the_server_stay_in_its_log(predictor, field, monkeypatch, caplog, error, status, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Predictor, "predict_to_folder", fail)
    # Other tests' logging configurations disable the loggers that were there before.
    monkeypatch.setattr(logging.getLogger("cellvision.serve"), "disabled", False)
    with caplog.at_level(logging.ERROR):
        reply = predict(open_client(predictor), field)
    assert refuse(reply, status) == said
    assert ("retry-after" in reply.headers) == (status == 503)
    assert ("a secret place" in caplog.text) == (status == 500)


def test_a_fault_outside_of_the_work_is_a_sentence_too(predictor, monkeypatch):
    monkeypatch.setattr("cellvision.serve.web.describe_bundle", lambda _: 1 / 0)
    assert refuse(open_client(predictor).get("/info"), 500) == "the server made a mistake; its log says which"
