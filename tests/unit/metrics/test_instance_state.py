import numpy as np
import pytest
import torch

from cellvision.errors import ConfigError, DataError
from cellvision.metrics.instance_state import InstanceMetrics
from cellvision.metrics.instances.coco_ap import compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import compute_overlaps, join_overlaps
from cellvision.metrics.instances.scores import compute_instance_scores, compute_panoptic_per_class
from crowded_fields import draw_coco, to_fields
from forked import run_two

CLASSES = ("background", "type1", "type2")


def draw_pairs():
    return to_fields(*draw_coco(11, classes=2, steps=3))


def test_scores_are_those_of_the_pure_functions():
    metrics = InstanceMetrics(CLASSES, max_dets=(10, 40), areas="coco", score_threshold=0.6)
    for pred, truth in draw_pairs():
        metrics.update(pred, truth)
    overlaps = join_overlaps([compute_overlaps(pred, truth) for pred, truth in draw_pairs()])
    settings = {"classes": CLASSES, "max_dets": (10, 40), "areas": "coco"}
    expected = compute_coco_ap(overlaps, kind="mask", **settings).to_dict()
    expected |= compute_coco_ap(overlaps, kind="box", **settings).to_dict()
    expected |= compute_instance_scores(overlaps, score_threshold=0.6).to_dict()
    expected |= compute_panoptic_per_class(overlaps, CLASSES, score_threshold=0.6)
    assert metrics.compute() == expected
    assert all(type(value) is float for value in expected.values())
    assert metrics.compute_coco("box").to_dict()["box/ar_40"] == expected["box/ar_40"]
    assert {"mask/ap_small", "mask/ar_10", "box/ap75", "instance/ap_dsb_50", "instance/mpq"} <= set(expected)


def test_nothing_seen_and_nothing_found_give_no_nan():
    metrics = InstanceMetrics(CLASSES)
    with pytest.warns(UserWarning, match="before the ``update``"):
        found = metrics.compute()
    assert set(found.values()) == {0.0}
    assert not any(name.startswith(("mask", "box")) for name in found)
    metrics.reset()
    nobody = InstanceField.from_rles([], shape=(4, 4), class_id=np.zeros(0, int), score=np.zeros(0))
    metrics.update(nobody, InstanceField.from_rles([], shape=(4, 4), class_id=np.zeros(0, int)))
    metrics.update(nobody, InstanceField.from_label_image(np.eye(4, dtype=int), np.array([1])))
    found = metrics.compute()
    assert (found["mask/ap"], found["box/afnr"], found["instance/recall"], found["instance/missed"]) == (0, 1, 0, 1)
    assert not any(np.isnan(value) for value in found.values())
    metrics.reset()
    assert metrics.parts == []


def test_forward_moves_and_half_precision_change_nothing():
    whole, stepwise = InstanceMetrics(CLASSES), InstanceMetrics(CLASSES, compute_on_cpu=True)
    for pred, truth in draw_pairs():
        whole.update(pred, truth)
        alone = InstanceMetrics(CLASSES)
        alone.update(pred, truth)
        assert stepwise(pred, truth) == alone.compute()
    stepwise.to("cpu").half().set_dtype(torch.float16)
    assert stepwise.compute() == whole.compute()
    assert stepwise.clone().compute() == whole.compute()


def test_a_named_field_counts_once_and_the_order_of_names_decides_ties():
    pairs = draw_pairs()
    metrics = InstanceMetrics(CLASSES)
    for number in (3, 1, 4, 1, 0, 2, 3):
        metrics.update(*pairs[number], name=f"field{number}")
    plain = InstanceMetrics(CLASSES)
    for pred, truth in pairs:
        plain.update(pred, truth)
    assert metrics.compute() == plain.compute()


def test_misfits_are_refused():
    with pytest.raises(ConfigError, match="background and at least one more"):
        InstanceMetrics(("background",))
    with pytest.raises(ConfigError, match="max_dets=5,5"):
        InstanceMetrics(CLASSES, max_dets=(5, 5))
    with pytest.raises(DataError, match="cells of class 1 to 2; need 1 to 1"):
        InstanceMetrics(CLASSES[:2]).update(*draw_pairs()[2])


def score_part(rank):
    plain, named = InstanceMetrics(CLASSES), InstanceMetrics(CLASSES)
    pairs = draw_pairs()
    if rank == 0:
        for pair in pairs:
            plain.update(*pair)
    # As a distributed sampler deals five fields to two processes: the first comes again at the end.
    for number in ([0, 2, 4], [1, 3, 0])[rank]:
        named.update(*pairs[number], name=f"field{number}")
    first = named.compute()
    assert len(named.parts) == 3
    return [plain.compute(), first]


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one():
    results = run_two(score_part)
    metrics = InstanceMetrics(CLASSES)
    for pair in draw_pairs():
        metrics.update(*pair)
    expected = metrics.compute()
    assert results == [[expected, expected]] * 2
