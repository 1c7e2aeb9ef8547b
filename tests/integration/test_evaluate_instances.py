"""``cellvision evaluate PREDICTIONS.json --truth FILE`` from the outside, and what it needs of memory."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellvision.cli import main
from cellvision.commands.evaluation.instances import load_truth
from cellvision.metrics.instances.coco_ap import AREAS
from cellvision.types import IGNORE
from crowded_fields import draw_coco


def write(folder, truth, predictions):
    for name, content in (("truth.json", truth), ("found.json", predictions)):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "found.json", folder / "truth.json"


def run(folder, truth, predictions, *options):
    """(exit code, what is in the file of scores or None)."""
    found, true = write(folder, truth, predictions)
    out = folder / "out" / "scores.json"
    code = main([str(a) for a in ("evaluate", found, "--truth", true, "--out", out, *options)])
    return code, json.loads(out.read_text()) if out.exists() else None


def run_pycocotools(truth, predictions, *, kind, max_dets, areas):
    """{"ap": .., "ap50": .., "ap_small": .., "ar_<max_dets>": ..} where defined."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = json.loads(json.dumps(truth))
        true.createIndex()
        drop = {"segm": "bbox", "bbox": "segmentation"}[kind]
        found = true.loadRes([{k: v for k, v in row.items() if k != drop} for row in predictions])
        evaluator = COCOeval(true, found, kind)
        evaluator.params.maxDets, evaluator.params.areaRng = list(max_dets), [list(b) for b in AREAS[areas]]
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    parts = {"ap": precision[..., 0, -1], "ap50": precision[0, ..., 0, -1], "ap_small": precision[..., 1, -1]}
    parts |= {"ap_medium": precision[..., 2, -1], "ar_large": recall[..., 3, -1]}
    parts |= {f"ar_{most}": recall[..., 0, m] for m, most in enumerate(max_dets)}
    return {name: part[part > -1].mean() for name, part in parts.items() if (part > -1).any()}


def to_polygons(truth):
    """The same truth with outlines, some of two pieces and with fractions, instead of RLE; crowds keep theirs."""
    rng = np.random.default_rng(0)
    rows = []
    for row in truth["annotations"]:
        left, top, width, height = row["bbox"]
        corners = [left, top + height / 2, left + width / 2, top, left + width, top + height / 2, left, top + height]
        pieces = [np.clip(corners, 0, 90).tolist()]
        if rng.random() < 0.2:
            pieces.append([1, 1, 9.5, 1, 9.5, 7])
        elif not coco_mask.area(coco_mask.frPyObjects(pieces, 90, 110)).any():
            continue  # no pixel has its centre inside: that is a fault
        rows.append(row if row["iscrowd"] else row | {"segmentation": pieces})
    return truth | {"annotations": rows}


@pytest.mark.parametrize("as_polygons", [False, True])
def test_scores_are_those_of_pycocotools(tmp_path, capsys, as_polygons):
    truth, predictions = draw_coco(20, classes=2, cells=20)
    truth = to_polygons(truth) if as_polygons else truth
    options = ["--max-dets", "5,20,3000", "--areas", "coco"]
    code, found = run(tmp_path, truth, predictions, *options)
    assert code == 0
    for kind, theirs in (("mask", "segm"), ("box", "bbox")):
        expected = run_pycocotools(truth, predictions, kind=theirs, max_dets=(5, 20, 3000), areas="coco")
        assert {name: found["scores"][f"{kind}/{name}"] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["settings"]["max_dets"] == [5, 20, 3000]
    assert found["settings"]["areas"]["small"] == [0, 1024]
    assert found["classes"] == ["background", "type1", "type2"]
    assert set(found["per_class"]) == {"type1", "type2"}
    assert found["per_iou"]["mask"]["precision"]["0.50"] == found["scores"]["mask/ap50"]
    assert found["scores"]["instance/mpq"] > 0
    printed = capsys.readouterr().out
    for words in ("ap_small", "ar_3000", "afnr", "type2", "kaggle_map", "predictions of score 0.5 and more (default)"):
        assert words in printed


def test_defaults_are_for_dense_cells(tmp_path):
    found = run(tmp_path, *draw_coco(21))[1]
    assert found["settings"]["max_dets"] == [100, 500, 2000]
    assert found["settings"]["areas"]["medium"] == [324, 961]
    assert found["settings"]["score_threshold"] == 0.5
    assert found["per_class"] == {}


def test_a_threshold_that_is_given_is_said_to_be(tmp_path, capsys):
    run(tmp_path, *draw_coco(21), "--score-threshold", "0.25")
    assert "predictions of score 0.25 and more (given)" in capsys.readouterr().out


def test_threshold_given_and_fitted(tmp_path, capsys):
    truth, predictions = draw_coco(22)
    fitted = run(tmp_path, truth, predictions, "--fit")[1]
    assert "(fitted on these images to ap_dsb_50)" in capsys.readouterr().out
    threshold = fitted["settings"]["score_threshold"]
    assert fitted["settings"]["fitted"]["value"] == fitted["scores"]["instance/ap_dsb_50"]
    for other in (0.2, 0.5, 0.9, threshold):
        given = run(tmp_path, truth, predictions, "--score-threshold", other)[1]["scores"]["instance/ap_dsb_50"]
        assert given <= fitted["scores"]["instance/ap_dsb_50"]
        assert (given == fitted["scores"]["instance/ap_dsb_50"]) == (other == threshold)


def test_truth_as_livecell_and_other_tools_write_it(tmp_path):
    truth, predictions = draw_coco(23)
    as_object = {str(row["id"]): row for row in truth["annotations"]}
    assert (
        run(tmp_path, truth | {"annotations": as_object}, predictions)[1]["scores"]
        == (run(tmp_path, truth, predictions)[1]["scores"])
    )
    bare = [{k: v for k, v in row.items() if k not in ("area", "bbox")} for row in truth["annotations"]]
    bare[0] |= {"area": None, "bbox": []}
    fields = load_truth(write(tmp_path, truth | {"annotations": bare}, [])[1]).fields
    assert list(fields) == sorted(image["id"] for image in truth["images"])
    for id_, field in fields.items():
        rles = [row["segmentation"] for row in bare if row["image_id"] == id_]
        assert field.areas.tolist() == list(coco_mask.area(rles))
        boxes = np.reshape(coco_mask.toBbox(rles) if rles else [], (-1, 4))
        assert (field.boxes == np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)).all()


def test_uncertain_cells_are_of_any_class_and_no_class(tmp_path):
    truth, predictions = draw_coco(24, classes=3, crowd=0)
    truth["categories"][1]["name"] = "uncertain"
    predictions = [row for row in predictions if row["category_id"] != 20]
    path = write(tmp_path, truth, predictions)[1]
    loaded = load_truth(path)
    assert loaded.classes == ("background", "type1", "type3")
    assert loaded.class_of == {10: 1, 30: 2}
    class_id = np.concatenate([field.class_id for field in loaded.fields.values()])
    ignored = np.concatenate([field.ignored for field in loaded.fields.values()])
    assert set(class_id) == {1, 2, IGNORE}
    assert (ignored == (class_id == IGNORE)).all()
    assert run(tmp_path, truth, predictions)[0] == 0


def test_no_prediction_scores_nothing(tmp_path):
    code, found = run(tmp_path, draw_coco(25)[0], [])
    assert code == 0
    scores = found["scores"]
    assert [scores[name] for name in ("mask/ap", "box/ar_2000", "instance/recall", "instance/seg")] == [0.0] * 4
    assert scores["mask/afnr"] == 1.0


def test_images_without_predictions_are_missed_unless_they_are_left_out(tmp_path, capsys):
    truth, predictions = draw_coco(27, images=5, cells=8)
    kept = set(sorted({row["image_id"] for row in predictions})[:2])
    predictions = [row for row in predictions if row["image_id"] in kept]
    whole = run(tmp_path, truth, predictions)[1]
    assert (whole["images"], whole["images_without_predictions"]) == (5, 3)
    printed = " ".join(capsys.readouterr().out.split())
    assert "truth without any prediction: 3 (their cells are missed; --only-" in printed
    part = run(tmp_path, truth, predictions, "--only-predicted")[1]
    assert (part["images"], part["images_without_predictions"], part["settings"]["only_predicted"]) == (2, 3, True)
    assert "without any prediction: 3 (left out)" in capsys.readouterr().out
    smaller = {
        "images": [image for image in truth["images"] if image["id"] in kept],
        "annotations": [row for row in truth["annotations"] if row["image_id"] in kept],
    }
    expected = run(tmp_path, truth | smaller, predictions)[1]
    assert part["scores"] == expected["scores"]
    assert expected["images_without_predictions"] == 0
    assert "without any prediction" not in capsys.readouterr().out
    assert whole["scores"]["instance/missed"] > part["scores"]["instance/missed"]


def bad(change):
    truth, predictions = draw_coco(26, images=3, cells=5)
    return change(truth, predictions)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t, p: (t, {"annotations": p}), [], "found.json is a JSON dict; need a list of predictions"),
        (lambda t, p: (t, [p[0] | {"image_id": 5}]), [], "found.json: prediction no. 1 has the unknown image_id 5"),
        (lambda t, p: (t, [p[0] | {"category_id": 5}]), [], "prediction no. 1 has the unknown category_id 5"),
        (lambda t, p: (t, [p[0] | {"score": float("nan")}]), [], "prediction no. 1 has the score nan"),
        (lambda t, p: (t, [{k: v for k, v in p[0].items() if k != "segmentation"}]), [], "no. 1 lacks segmentation"),
        (
            lambda t, p: (t, [p[0] | {"segmentation": {"size": [5, 5], "counts": "0"}}]),
            [],
            "found.json: prediction no. 1 has an RLE of size [5, 5] in an image of [90, 110]",
        ),
        (lambda t, p: (t | {"annotations": []}, p), [], "truth.json has no annotations; need true cells"),
        (lambda t, p: ({"images": []}, p), [], "truth.json lacks the lists annotations, categories"),
        (lambda t, p: (t, []), ["--fit"], "0 predicted and"),
        (lambda t, p: (t, p), ["--max-dets", "10,5"], "max_dets=10,5; need ascending numbers"),
        (lambda t, p: (t, p), ["--score-threshold", "nan"], "score_threshold=nan; need a number"),
        (lambda t, p: (t, p), ["--score-threshold", "2"], "=2.0; need a number from 0 to 1; try: --score-"),
        (lambda t, p: (t, p), ["--score-threshold", "-0.1"], "score_threshold=-0.1; need a number from 0 to 1"),
        (lambda t, p: (t, p), ["--min-visible", "1.5"], "min_visible=1.5; need a share from 0 to 1"),
        (lambda t, p: (t, p), ["--min-area-px", "0"], "min_area_px=0; need a whole number from 1 up"),
        (lambda t, p: (t, p), ["--max-dets", "0"], "max_dets=0; need ascending numbers"),
        (lambda t, p: (t, []), ["--only-predicted"], "found.json has no prediction; need one for --only-predicted"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, change, options, message):
    code, found = run(tmp_path, *bad(change), *options)
    error = capsys.readouterr().err
    assert (code, found) == (2, None)
    assert error.startswith("cellvision: ")
    assert message in error
    assert "; try: " in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_cells_that_cannot_be_read_are_left_out_where_that_is_asked_for(tmp_path, capsys):
    truth, predictions = draw_coco(32)
    expected = run(tmp_path, truth, predictions)[1]["scores"]
    line = truth["annotations"][0] | {"id": 10_000, "segmentation": [[5, 5, 9, 9, 7, 7]]}
    spoiled = truth | {"annotations": [*truth["annotations"], line]}
    (tmp_path / "out" / "scores.json").unlink()
    assert run(tmp_path, spoiled, predictions) == (2, None)
    assert "--skip-faulty" in capsys.readouterr().err
    assert run(tmp_path, spoiled, predictions, "--skip-faulty")[1]["scores"] == expected
    assert "1 annotations left out, first annotation 10000" in capsys.readouterr().err


@pytest.mark.parametrize("input_", ["found.json", "truth.json"])
def test_inputs_are_not_overwritten(tmp_path, capsys, input_):
    found, truth = write(tmp_path, *draw_coco(28))
    before = (tmp_path / input_).read_bytes()
    out = tmp_path / "sub" / ".." / input_
    (tmp_path / "sub").mkdir()
    assert main(["evaluate", str(found), "--truth", str(truth), "--out", str(out)]) == 2
    assert "which is read for the scores; need a file of its own; try: --out " in capsys.readouterr().err
    assert (tmp_path / input_).read_bytes() == before


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_separate_cells_are_scored_as_painted(tmp_path, capsys):
    """Overlapping predictions become cells before they count; pixels of the label image are the oracle."""
    truth, predictions = draw_coco(29, crowd=0)
    options = ["--score-threshold", "0.2", "--min-visible", "0.4", "--min-area-px", "6"]
    found = run(tmp_path, truth, predictions, *options)[1]
    assert "from 0.4 visible and 6 px up, the best score on top" in capsys.readouterr().out
    kept = 0
    for image in truth["images"]:
        taken = np.zeros((image["height"], image["width"]), bool)
        rows = [row for row in predictions if row["image_id"] == image["id"] and row["score"] >= 0.2]
        for row in sorted(rows, key=lambda row: -row["score"]):
            mask = coco_mask.decode(row["segmentation"]).astype(bool)
            free = mask & ~taken
            if free.sum() >= max(6, 0.4 * mask.sum()):
                taken |= free
                kept += 1
    assert found["scores"]["instance/pred_count"] == kept
    assert {name: found["settings"][name] for name in ("min_visible", "min_area_px")} == {
        "min_visible": 0.4, "min_area_px": 6,
    }  # fmt: skip
    assert run(tmp_path, truth, predictions, *options[:2])[1]["scores"]["mask/ap"] == found["scores"]["mask/ap"]


@pytest.mark.skipif(sys.platform != "linux", reason="only there file names are any bytes")
def test_a_file_name_that_utf_8_cannot_hold_is_written_as_json_names_it(tmp_path):
    found, truth = write(tmp_path, *draw_coco(30))
    odd, out = tmp_path / os.fsdecode(b"found\xff.json"), tmp_path / "out.json"
    found.rename(odd)
    assert main(["evaluate", str(odd), "--truth", str(truth), "--out", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["predictions"] == str(odd)


@pytest.mark.parametrize("change", [{"area": 10**400}, {"bbox": [10**400, 1, 2, 3]}, {"bbox": [1e300, 1, 1e300, 3]}])
def test_sizes_that_no_float_holds_are_taken_from_the_mask(tmp_path, change):
    truth, predictions = draw_coco(31)
    bare = dict.fromkeys(change)
    expected, scores = (
        run(
            tmp_path,
            truth | {"annotations": [truth["annotations"][0] | values, *truth["annotations"][1:]]},
            predictions,
        )
        for values in (bare, change)
    )
    assert scores == expected
    assert scores[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["found.json"], "the following arguments are required: --truth"),
        (["found.json", "--truth", "t", "--bundle", "b", "--threads", "2"], "--bundle, --threads: only without a file"),
        (["found.json", "--truth", "t", "--json", "x"], "--json: only without a file of predictions; try: --out"),
        (["--bundle", "b", "--truth", "t"], "--truth: only with a file of predictions; try: --coco instead of --truth"),
        (["--bundle", "b"], "the following arguments are required: --images, --labels or --coco"),
        (["found.json", "--truth", "t", "--max-dets", "many"], "'many' is no list of whole numbers"),
        (["found.json", "--truth", "t", "--fit", "--score-threshold", "1"], "not allowed with argument --fit"),
    ],
)
def test_options_of_the_other_way_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


WITHOUT_TORCH = """
import sys
from cellvision.cli import main
assert main(sys.argv[1:]) == 0
loaded = {"torch", "torchmetrics", "lightning", "timm"} & set(sys.modules)
assert not loaded, loaded
"""


def test_torch_is_not_loaded(tmp_path):
    found, truth = write(tmp_path, *draw_coco(27))
    arguments = ["evaluate", str(found), "--truth", str(truth)]
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MEMORY = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from coco_evaluators import distort, draw_ellipses, to_runs
from cellvision.metrics.instances.coco_ap import compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.scores import compute_instance_scores
from cellvision.metrics.instances.mask_runs import encode_masks
from cellvision.metrics.instances.overlaps import compute_overlaps, join_overlaps

def peak_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

rng, shape, ones = np.random.default_rng(0), (520, 704), np.ones(3000, int)
before, parts = peak_mib(), []
for _ in range(50):
    cells = draw_ellipses(rng, cells=3000, shape=shape)
    masks = (encode_masks(to_runs(one, shape)) for one in (cells, distort(rng, cells, 0.06)))
    truth = InstanceField.from_rles(next(masks), shape=shape, class_id=ones)
    pred = InstanceField.from_rles(next(masks), shape=shape, class_id=ones, score=rng.random(3000))
    parts.append(compute_overlaps(pred, truth))
overlaps = join_overlaps(parts)
settings = {"classes": ("background", "cell"), "max_dets": (100, 500, 3000)}
found = compute_coco_ap(overlaps, kind="mask", **settings).to_dict()
found |= compute_coco_ap(overlaps, kind="box", **settings).to_dict()
found |= compute_instance_scores(overlaps, score_threshold=0.5).to_dict()
print(json.dumps(found | {"grown_mib": peak_mib() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_fifty_fields_of_3000_cells_need_little_memory():
    # One table of all pairs of one field alone, as pycocotools makes it, takes 69 MiB.
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parents[2] / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    found = json.loads(done.stdout)
    assert found["grown_mib"] < 150
    assert found["mask/ar_3000"] > 0.5 > 0.1 > found["mask/ar_100"]
    assert 74_000 < found["instance/pred_count"] < 76_000
