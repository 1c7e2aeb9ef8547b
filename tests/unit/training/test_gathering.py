"""Two processes, each of which has scored some of the fields."""

import pytest

from cellvision.metrics.instance_state import InstanceMetrics
from cellvision.models.base import NetSpec
from cellvision.training.gathering import gather
from cellvision.training.instance_report import InstanceReport
from cellvision.training.scoring import Scores
from crowded_fields import draw_coco, to_fields
from forked import run_two

CLASSES = ("background", "type1", "type2")


def draw_pairs():
    return to_fields(*draw_coco(11, classes=2, steps=3))


def gather_part(rank):
    pairs = draw_pairs()
    report = InstanceReport()
    spec = NetSpec(name="a", kind="instance", in_channels=1, classes=CLASSES, stride=1, outputs=("boxes",), tiles=False)
    scores = Scores(spec, mask_threshold=0.5)
    for number in range(rank, 5, 2):
        report.fields[f"field{number}"] = pairs[number][0]
        scores.found.update(*pairs[number], name=f"field{number}")
        scores.pixel.confusion += number
        scores.cell.confusion += 10 * number
    report.gather()
    curves = {
        name: [curve.recall.tolist(), curve.precision.tolist(), curve.chosen_recall]
        for name, curve in scores.curves(0.5).items()
    }
    confusions = {name: int(counts[0, 0]) for name, counts in scores.confusions().items()}
    assert len(scores.found.parts) == (3, 2)[rank]
    return {name: len(field) for name, field in report.fields.items()}, curves, confusions


def test_one_process_has_all():
    assert gather([3]) == [[3]]


@pytest.mark.slow
def test_fields_curves_and_confusions_are_those_of_both_processes():
    results = run_two(gather_part)
    metrics = InstanceMetrics(CLASSES)
    for number, pair in enumerate(draw_pairs()):
        metrics.update(*pair, name=f"field{number}")
    lengths, curves, confusions = results[0]
    assert results[0][1:] == results[1][1:]
    assert lengths == results[1][0] == {f"field{i}": len(pred) for i, (pred, _) in enumerate(draw_pairs())}
    expected = {
        f"{kind}, {name}": [recall.tolist(), precision.tolist()]
        for kind in ("mask", "box")
        for name, (recall, precision) in metrics.compute_coco(kind).to_curves().items()
    }
    assert {name: curve[:2] for name, curve in curves.items()} == expected
    assert all((curve[2] is None) == name.startswith("box") for name, curve in curves.items())
    assert len(expected) >= 2
    assert confusions == {"pixel": 0 + 1 + 2 + 3 + 4, "cell": 10 * (0 + 1 + 2 + 3 + 4)}
