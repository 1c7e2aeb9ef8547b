import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_jaccard_index

from cellvision.errors import ConfigError, DataError, ShapeError
from cellvision.metrics.cells import compute_cell_scores, compute_field_score, sum_fields
from cellvision.metrics.state import CellMetrics, PixelMetrics
from forked import run_two

CLASSES = ("background", "live", "dead")


def draw_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 3, (2, 24, 31), generator=generator)
    logits = torch.randn(2, 3, 24, 31, generator=generator) + 1.5 * torch.nn.functional.one_hot(truth, 3).movedim(-1, 1)
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = 255
    return logits.softmax(1), truth


def draw_field(seed, cells=12):
    """Keyword arguments of CellMetrics.update for one field."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((4, 4 * cells), np.int32)
    for label in range(1, cells + 1):
        truth[:3, 4 * label - 4 : 4 * label - 1] = label
    pred = np.where(rng.random(cells + 1)[truth] < 0.2, 0, truth)
    p_live = rng.random(cells)
    return {
        "pred_label_image": pred,
        "pred_classes": np.where(p_live >= 0.5, 1, 2),
        "p_live": p_live,
        "true_label_image": truth,
        "true_cell_classes": rng.choice([1, 2, 255], cells, p=[0.5, 0.4, 0.1]),
    }


def test_pixel_scores_over_batches_equal_torchmetrics_over_all():
    batches = [draw_batch(seed) for seed in range(3)]
    metrics = PixelMetrics(CLASSES)
    for probabilities, truth in batches:
        metrics.update(probabilities, truth)
    found = metrics.compute()
    probabilities, truth = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = multiclass_jaccard_index(probabilities, truth, 3, ignore_index=255)
    assert found["pixel/miou"] == pytest.approx(float(expected), rel=1e-6)
    known, cell = truth != 255, (truth == 1) | (truth == 2)
    foreground = binary_auroc(1 - probabilities[:, 0][known], (truth[known] > 0).long())
    assert found["pixel/auroc_foreground"] == pytest.approx(float(foreground), abs=2e-3)
    share = probabilities[:, 1] / (probabilities[:, 1] + probabilities[:, 2])
    live = binary_auroc(share[cell], (truth[cell] == 1).long())
    assert found["pixel/auroc_live_dead"] == pytest.approx(float(live), abs=2e-3)
    assert all(type(value) is float for value in found.values())
    metrics.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metrics.compute() == {}


def test_pixel_metrics_take_numpy_too():
    probabilities, truth = draw_batch(0)
    ours, theirs = PixelMetrics(CLASSES), PixelMetrics(CLASSES)
    ours.update(probabilities.numpy(), truth.numpy())
    theirs.update(probabilities, truth)
    assert ours.compute() == theirs.compute()


def test_cell_scores_equal_the_pure_functions_on_all_fields():
    metrics, fields = CellMetrics(CLASSES), []
    for seed in range(4):
        field = draw_field(seed)
        metrics.update(**{name: torch.as_tensor(value) for name, value in field.items()})
        field["true_classes"] = field.pop("true_cell_classes")
        fields.append(compute_field_score(**field, classes=CLASSES))
    found = metrics.compute()
    expected = compute_cell_scores(sum_fields(fields, 3)).to_dict(CLASSES)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    shares = [field.count_viability(CLASSES) for field in fields]
    errors = [abs(c / (c + d) - a / (a + b)) * 100 for a, b, c, d in shares]
    assert found["field/viability_error_pp"] == pytest.approx(np.mean(errors))
    assert found["field/viability_fields"] == 4.0


def test_nothing_seen_and_nothing_found_give_no_nan():
    metrics = CellMetrics(CLASSES)
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metrics.compute() == {"field/viability_fields": 0.0, "field/viability_undefined": 0.0}
    metrics.reset()
    empty = np.zeros((4, 4), np.int32)
    metrics.update(empty, np.zeros(0, int), np.zeros(0), empty, np.zeros(0, int))
    metrics.update(empty, np.zeros(0, int), None, np.ones((4, 4), np.int32), np.array([1]))
    found = metrics.compute()
    assert found["cell/f1"] == 0.0
    assert not any(np.isnan(value) for value in found.values())


def test_classes_other_than_live_and_dead_have_no_viability():
    metrics = CellMetrics(("background", "nucleus"))
    image = np.array([[1, 1, 0, 2]])
    metrics.update(image, np.array([1, 1]), None, image, np.array([1, 1]))
    assert metrics.compute() == {"cell/precision": 1.0, "cell/recall": 1.0, "cell/f1": 1.0, "cell/iou": 1.0}


def score_part(rank):
    cells, pixels = CellMetrics(CLASSES), PixelMetrics(CLASSES)
    if rank == 0:
        cells.update(**draw_field(0))
        cells.update(**draw_field(1))
    else:
        cells.update(np.zeros((4, 4), int), np.zeros(0, int), np.zeros(0), np.zeros((4, 4), int), np.zeros(0, int))
    pixels.update(*draw_batch(rank))
    return cells.compute() | pixels.compute()


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one():
    results = run_two(score_part)
    cells, pixels = CellMetrics(CLASSES), PixelMetrics(CLASSES)
    for seed in range(2):
        cells.update(**draw_field(seed))
        pixels.update(*draw_batch(seed))
    assert results[0] == results[1] == pytest.approx(cells.compute() | pixels.compute())


def test_misfits_are_refused():
    probabilities, truth = draw_batch(0)
    with pytest.raises(ConfigError, match="background and at least one more"):
        PixelMetrics(("background",))
    with pytest.raises(ShapeError, match=r"need \(B, 3, H, W\) and \(B, H, W\)"):
        PixelMetrics(CLASSES).update(probabilities, truth[:, :-1])
    with pytest.raises(DataError, match="probabilities with NaN"):
        PixelMetrics(CLASSES).update(probabilities * float("nan"), truth)
    with pytest.raises(DataError, match="true classes up to 3"):
        PixelMetrics(CLASSES).update(probabilities, torch.full_like(truth, 3))
