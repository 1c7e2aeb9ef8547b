"""What the gate makes of measurements, case by case; real graphs are in test_measure."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from cellvision.errors import ExportError
from cellvision.export.gate.decision import SLOWER, judge
from cellvision.export.gate.latency import DOUBT, find_least_ratio
from cellvision.export.gate.measure import NET, RUNS, Measurement
from cellvision.metrics.accuracy import choose_headlines
from cellvision.metrics.cost.peak_memory import PeakMemory

CLASSES = ("background", "live", "dead")
NAN = float("nan")
SEMANTIC = choose_headlines("semantic", ("background", "cell"))
VIABILITY = choose_headlines("viability", CLASSES)
INSTANCE = choose_headlines("instance", ("background", "cell"))


def measure(name, ratio=NAN, *, size=None, peak=None, failure="", **scores):
    """A measurement; ``scores`` as pixel_miou=0.9 and so on."""
    return Measurement(
        name=name,
        accuracy={key.replace("_", "/", 1): value for key, value in scores.items()},
        cells=10,
        fields=2,
        agreement={},
        ratio=ratio,
        least_ratio=ratio,
        size_bytes=size,
        memory=None if peak is None else PeakMemory(peak_mib=peak, growth_mib=peak),
        failure=failure,
    )


REFERENCE = measure(NET, pixel_miou=0.90)
FP32 = measure("fp32", 1.0, size=1000, peak=200.0, pixel_miou=0.90)


def test_a_form_that_is_as_right_and_faster_is_kept():
    int8 = measure("int8", 0.4, size=260, peak=150.0, pixel_miou=0.895)
    verdict = judge(REFERENCE, [FP32, int8], headlines=SEMANTIC)
    assert (verdict.kept, verdict.passed, verdict.sentence) == ("int8", True, "")
    finding = verdict.findings[1]
    assert finding.lost_points == {"pixel/miou": 0.5}
    assert (finding.ratio, finding.size_ratio, finding.memory_ratio) == (0.4, 0.26, 0.75)
    verdict.raise_if_refused()


def test_a_loss_over_the_tolerance_is_refused_in_one_sentence():
    int8 = measure("int8", 0.4, pixel_miou=0.871)
    verdict = judge(REFERENCE, [FP32, int8], headlines=SEMANTIC)
    assert verdict.kept == "fp32"
    sentence = (
        "int8 is 2.90 points worse in mean IoU (0.900 to 0.871); fp32 is kept; need at most 1 point worse than "
        "PyTorch in mean IoU, and no slower than fp32 on this machine; try: allow_worse=true to keep it all the same"
    )
    assert verdict.sentence == sentence
    with pytest.raises(ExportError) as caught:
        verdict.raise_if_refused()
    assert str(caught.value) == sentence
    assert judge(REFERENCE, [FP32, int8], headlines=SEMANTIC, tolerance_points=3.0).kept == "int8"


@pytest.mark.parametrize(("lost", "passes"), [(0.01, True), (0.010001, False), (0.0, True), (-0.05, True)])
def test_the_tolerance_itself_is_allowed(lost, passes):
    form = measure("int8", 0.5, pixel_miou=0.90 - lost)
    assert judge(REFERENCE, [FP32, form], headlines=SEMANTIC).passed is passes


@pytest.mark.parametrize(("ratio", "passes"), [(0.99, True), (1.0, True), (SLOWER, False), (2.0, False), (NAN, False)])
def test_slower_than_fp32_is_refused(ratio, passes):
    verdict = judge(REFERENCE, [FP32, measure("int8", ratio, pixel_miou=0.90)], headlines=SEMANTIC)
    assert verdict.passed is passes
    said = "" if passes else "has no time" if math.isnan(ratio) else f"takes {ratio:.2f} times as long as fp32"
    assert said in verdict.sentence


@pytest.mark.parametrize(
    ("slower", "passes"), [(0.5, True), (1.0, True), (1.03, True), (1.25, False), (1.5, False), (3.0, False)]
)
def test_chance_does_not_decide_on_speed(slower, passes):
    """Made-up times on a machine that others slow by up to 40 %, and interrupt in a tenth of the rounds."""
    rng = np.random.default_rng(int(100 * slower))
    medians, passed = [], []
    for _ in range(300):
        first = 10 * rng.uniform(1.0, 1.4, RUNS)
        form = first * slower * np.exp(rng.normal(0, 0.08, RUNS)) * np.where(rng.random(RUNS) < 0.1, 3, 1)
        medians.append(np.median(form / first))
        found = measure("fp16", medians[-1], pixel_miou=0.90)
        found = replace(found, least_ratio=find_least_ratio(form.tolist(), first.tolist()))
        passed.append(judge(REFERENCE, [FP32, found], headlines=SEMANTIC).passed)
    assert np.mean(np.equal(passed, passes)) > 0.98
    if slower == 1.03:
        assert 0.1 < np.mean(np.array(medians) >= SLOWER) < 0.9, "by its median, chance would decide"


@pytest.mark.parametrize("rounds", [5, 8, 15, 40])
def test_the_bound_is_that_of_the_sign_test(rounds):
    rng = np.random.default_rng(rounds)
    draws = rng.lognormal(0.0, 0.3, (4000, rounds))  # of median 1
    bounds = [find_least_ratio(ratios.tolist(), [1.0] * rounds) for ratios in draws]
    place = max(k for k in range(rounds) if binom.cdf(k, rounds, 0.5) <= DOUBT)
    np.testing.assert_array_equal(bounds, np.sort(draws, axis=1)[:, place])
    assert np.greater(bounds, 1.0).mean() < 1.2 * DOUBT


def test_the_bound_of_few_rounds_is_the_smallest():
    assert find_least_ratio([3.0, 2.0, 4.0], [1.0, 1.0, 1.0]) == 2.0


def test_a_form_that_is_not_for_speed_may_be_slow_and_that_is_said():
    how = {"headlines": SEMANTIC, "may_be_slow": ("two graphs",)}
    verdict = judge(REFERENCE, [FP32, measure("two graphs", 1.4, pixel_miou=0.90)], **how)
    assert (verdict.kept, verdict.passed, verdict.sentence) == ("two graphs", True, "")
    assert verdict.to_record()["forms"]["two graphs"]["remarks"] == ["takes 1.40 times as long as fp32"]
    verdict = judge(REFERENCE, [FP32, measure("two graphs", 1.4, pixel_miou=0.80)], **how)
    assert (verdict.kept, verdict.passed) == ("fp32", False)
    assert "two graphs is 10.00 points worse in mean IoU (0.900 to 0.800); fp32 is kept" in verdict.sentence
    assert not judge(REFERENCE, [FP32, measure("two graphs", NAN, pixel_miou=0.90)], **how).passed


def test_every_fault_is_said():
    form = measure("int8", 1.5, pixel_miou=0.5)
    sentence = judge(REFERENCE, [FP32, form], headlines=SEMANTIC).sentence
    assert sentence.startswith(
        "int8 is 40.00 points worse in mean IoU (0.900 to 0.500) and takes 1.50 times as long as"
    )


@pytest.mark.parametrize("after", [{}, {"pixel_miou": NAN}])
def test_what_is_nan_or_absent_never_passes(after):
    verdict = judge(REFERENCE, [FP32, measure("int8", 0.4, **after)], headlines=SEMANTIC, tolerance_points=1e9)
    assert not verdict.passed
    assert "int8 cannot be compared in mean IoU (0.900 to" in verdict.sentence
    verdict = judge(measure(NET, **after), [FP32], headlines=SEMANTIC, tolerance_points=1e9)
    assert not verdict.passed


def test_without_true_cells_nothing_passes():
    none = judge(measure(NET), [measure("fp32", 1.0)], headlines=SEMANTIC)
    assert not none.passed
    assert "no true cell to measure it by" in none.sentence


def test_fp32_itself_is_judged_on_accuracy_alone():
    verdict = judge(REFERENCE, [measure("fp32", NAN, pixel_miou=0.9)], headlines=SEMANTIC)
    assert (verdict.passed, verdict.kept) == (True, "fp32")
    verdict = judge(REFERENCE, [measure("fp32", 1.0, pixel_miou=0.7)], headlines=SEMANTIC)
    assert (verdict.passed, verdict.kept) == (False, "fp32")


def test_each_score_of_a_viability_net_counts_and_an_error_that_falls_is_no_loss():
    before = {"cell_f1": 0.9, "cell_live_dead_f1": 0.8, "field_viability_error_pp": 3.0}
    first = measure("fp32", 1.0, **before)
    better = measure("int8", 0.5, **(before | {"field_viability_error_pp": 1.0}))
    assert judge(measure(NET, **before), [first, better], headlines=VIABILITY).findings[1].lost_points == {
        "cell/f1": 0.0,
        "cell/live_dead_f1": 0.0,
        "field/viability_error_pp": -2.0,
    }
    for score, value, said in (
        ("cell_f1", 0.85, "5.00 points worse in found F1 (0.900 to 0.850)"),
        ("cell_live_dead_f1", 0.7, "10.00 points worse in live/dead F1"),
        ("field_viability_error_pp", 4.5, "1.50 points worse in viability error (3.0 to 4.5)"),
    ):
        worse = measure("int8", 0.5, **(before | {score: value}))
        assert said in judge(measure(NET, **before), [first, worse], headlines=VIABILITY).sentence


def test_instances_are_judged_by_mask_ap_and_separate_cells():
    before = {"mask_ap": 0.40, "instance_ap_dsb_50": 0.70}
    first = measure("fp32", 1.0, **before)
    worse = measure("int8", 0.5, mask_ap=0.385, instance_ap_dsb_50=0.69)
    verdict = judge(measure(NET, **before), [first, worse], headlines=INSTANCE)
    assert verdict.sentence.startswith("int8 is 1.50 points worse in mask AP (0.400 to 0.385); fp32 is kept")


def test_of_several_the_fastest_that_passes_is_kept():
    forms = [
        FP32,
        measure("fp16", 1.01, pixel_miou=0.9),
        measure("int8", 0.4, pixel_miou=0.895),
        measure("int4", 0.2, pixel_miou=0.6),
    ]
    verdict = judge(REFERENCE, forms, headlines=SEMANTIC)
    assert (verdict.kept, verdict.passed) == ("int8", False)  # int4 was wanted too, and is refused
    assert verdict.sentence.startswith("int4 is 30.00 points worse")
    assert verdict.sentence == judge(REFERENCE, forms, headlines=SEMANTIC).sentence
    twins = [FP32, measure("b", 0.4, pixel_miou=0.9), measure("a", 0.4, pixel_miou=0.9)]
    assert judge(REFERENCE, twins, headlines=SEMANTIC).kept == "b"


def test_what_is_wanted_all_the_same_is_kept_and_marked():
    forms = [FP32, measure("int8", 1.4, pixel_miou=0.5), measure("fp16", 1.2, pixel_miou=0.9)]
    verdict = judge(REFERENCE, forms, headlines=SEMANTIC, allow_worse=True)
    assert (verdict.kept, verdict.passed) == ("int8", False)
    verdict.raise_if_refused()
    record = verdict.to_record()
    assert (record["form"], record["passed"], record["allow_worse"]) == ("int8", False, True)
    assert "; int8 is kept; need at most 1 point worse than PyTorch in mean IoU" in verdict.sentence
    assert verdict.sentence.endswith("; try: allow_worse=false to keep the better one")
    forms.append(measure("int8_fewer", 0.6, pixel_miou=0.9))
    assert judge(REFERENCE, forms, headlines=SEMANTIC, allow_worse=True).kept == "int8_fewer"


def test_what_could_not_be_measured_does_not_pass():
    engine = measure("tensorrt", failure="no GPU here; need one; try: provider=cpu")
    verdict = judge(REFERENCE, [FP32, engine], headlines=SEMANTIC, tolerance_points=1e9)
    assert verdict.sentence.startswith("tensorrt could not be measured (no GPU here); fp32 is kept; need ")
    assert verdict.findings[1].size_ratio is None


def test_record_is_plain_data_without_nan():
    forms = [FP32, measure("int8", NAN), measure("tensorrt", failure="no GPU here")]
    record = judge(REFERENCE, forms, headlines=SEMANTIC).to_record()
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert record["forms"]["int8"]["lost_points"] == {"pixel/miou": None}
    assert record["forms"]["fp32"]["memory"] == {"peak_mib": 200.0, "growth_mib": 200.0}
    assert record["forms"]["tensorrt"]["failure"] == "no GPU here"
    assert (record["tolerance_points"], record["kept"]) == (1.0, "fp32")
    assert record["machine"]["cores"] > 0
