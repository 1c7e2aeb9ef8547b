"""What is drawn of a net that finds cells while it trains."""

from types import SimpleNamespace

import numpy as np
import pytest

from cellvision.bundle import Channel, Splitting
from cellvision.errors import ConfigError
from cellvision.models.base import NetSpec
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.pictures.marks import Marks
from cellvision.training import pictures as pictures_module
from cellvision.training.pictures import Pictures, choose_shown_score, draw_rows
from cellvision.training.scoring import FieldPrediction, repaint_field
from cellvision.training.task import SegmentationTask

SPEC = NetSpec(
    name="centermask2", kind="instance", in_channels=1, classes=("background", "cell"), stride=32,
    outputs=("boxes",), tiles=False,
)  # fmt: skip
CHANNELS = (Channel(name="grey"),)
SPLITTING = Splitting(method="instances", min_area_px=4)


def make_field(boxes, scores, *, size=64):
    """Two true cells; detections are whole boxes."""
    true = np.zeros((size, size), np.int32)
    true[4:24, 4:24], true[30:60, 30:60] = 1, 2
    scores = np.array(scores, np.float32)
    detections = Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4), scores=scores, mask_scores=None,
        class_id=np.ones(len(scores), np.int64), class_scores=scores[:, None],
        masks=np.ones((len(scores), 7, 7), np.float32),
    )  # fmt: skip
    field = FieldPrediction(
        name="well_A1", image=true[None].astype(np.float32), true_class_map=(true > 0).astype(np.int64),
        true_label_image=true, true_cell_classes=np.array([1, 1]), probabilities=np.zeros((2, size, size), np.float32),
        cells=None, detections=detections,
    )  # fmt: skip
    return repaint_field(SPEC, field, splitting=SPLITTING, live_threshold=0.5)


RIGHT, BESIDE, ELSEWHERE = [4, 4, 24, 24], [30, 30, 60, 60], [30, 4, 50, 20]


@pytest.fixture
def drawn(monkeypatch):
    """Captions, and (number of cells, marks) of each overlay."""
    found = SimpleNamespace(captions=[], overlays=[])
    add, draw = pictures_module.add_caption, pictures_module.draw_overlay
    monkeypatch.setattr(
        pictures_module, "add_caption", lambda picture, lines: (found.captions.append(lines), add(picture, lines))[1]
    )

    def overlay(image, cells, *, channels, marks, ignored):
        found.overlays.append((len(cells), marks))
        return draw(image, cells, channels=channels, marks=marks, ignored=ignored)

    monkeypatch.setattr(pictures_module, "draw_overlay", overlay)
    return found


def test_the_shown_score_is_that_which_agrees_best_with_the_truth():
    field = make_field([RIGHT, BESIDE, ELSEWHERE], [0.2, 0.1, 0.05])
    assert len(field.cells) == 0, "at 0.5 there would be nothing to see"
    assert choose_shown_score([field], SPLITTING) == pytest.approx(0.1)


def test_where_nothing_agrees_as_many_are_shown_as_there_should_be():
    wrong = make_field([ELSEWHERE, [50, 4, 60, 20], [4, 40, 20, 60]], [0.3, 0.2, 0.1])
    assert choose_shown_score([wrong], SPLITTING) == pytest.approx(0.2)
    assert choose_shown_score([make_field([ELSEWHERE], [0.3])], SPLITTING) == pytest.approx(0.3)


def test_where_nothing_is_found_the_threshold_stays():
    assert choose_shown_score([make_field([], [])], SPLITTING) == 0.5


def test_captions_tell_the_sides_the_field_and_the_score(drawn, tmp_path):
    callback = Pictures(folder=tmp_path)
    task = SimpleNamespace(net=SimpleNamespace(spec=SPEC), record=None, splitting=SPLITTING, live_threshold=0.5)
    field = make_field([RIGHT, BESIDE, ELSEWHERE], [0.2, 0.1, 0.05])
    task.record = SimpleNamespace(channels=CHANNELS, pixel_size_um=None)
    callback._draw(task, [field])
    assert drawn.captions == [("truth", "well_A1"), ("prediction", "score >= 0.100, chosen for this picture")]
    assert [count for count, _ in drawn.overlays] == [2, 2]


def test_small_fields_are_enlarged_and_truth_and_prediction_alike(drawn):
    field = make_field([RIGHT], [0.9])
    picture = draw_rows(SPEC, [field], channels=CHANNELS)
    assert picture.shape[1] >= 2 * 4 * 64
    assert picture.shape[0] > 4 * 64
    assert drawn.overlays == [(2, Marks(scores=True, zoom=4)), (1, Marks(scores=True, zoom=4))]
    draw_rows(SPEC, [make_field([RIGHT], [0.9], size=300)], channels=CHANNELS)
    assert drawn.overlays[-1][1] == Marks(scores=False, zoom=1), "a score has no room in a cell of 20 px"


def test_marks_are_drawn_as_asked(drawn):
    field = make_field([RIGHT], [0.9])
    draw_rows(SPEC, [field], channels=CHANNELS, marks=Marks(boxes=True, numbers=True), zoom=2)
    assert drawn.overlays[-1][1] == Marks(boxes=True, numbers=True, zoom=2)
    plain = draw_rows(SPEC, [field], channels=CHANNELS, marks=Marks())
    with_bar = draw_rows(SPEC, [field], channels=CHANNELS, marks=Marks(scale_bar=True), pixel_size_um=0.5)
    assert (plain != with_bar).any()
    assert drawn.overlays[-1][1].scale_bar
    draw_rows(SPEC, [field], channels=CHANNELS, pixel_size_um=0.5)
    assert drawn.overlays[-1][1].scale_bar, "by itself where the pixel size is known"


def test_unknown_marks_and_bars_without_a_length_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown callbacks.pictures.marks 'box'; .*'boxes'"):
        Pictures(folder=tmp_path, marks=["box"])
    with pytest.raises(ConfigError, match="zoom=0"):
        Pictures(folder=tmp_path, zoom=0)
    task = SegmentationTask.__new__(SegmentationTask)
    object.__setattr__(task, "record", SimpleNamespace(pixel_size_um=None))
    with pytest.raises(
        ConfigError, match=r"scale_bar and images without a pixel size; .*callbacks.pictures.marks=null"
    ):
        Pictures(folder=tmp_path, marks=["scale_bar"]).on_fit_start(None, task)
    object.__setattr__(task, "record", SimpleNamespace(pixel_size_um=0.5))
    Pictures(folder=tmp_path, marks=["scale_bar"]).on_fit_start(None, task)


@pytest.mark.parametrize(
    ("every", "interval", "drawn"),
    [
        (1, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
        (2, 1, [2, 4, 6, 8]),
        (2, 2, [2, 4, 6, 8]),
        (1, 4, [4, 8]),
        (3, 2, [4, 6]),
        (4, None, [4, 8]),
    ],
)
def test_pictures_are_of_validated_epochs_at_the_asked_distance(tmp_path, monkeypatch, every, interval, drawn):
    callback = Pictures(folder=tmp_path, every=every)
    monkeypatch.setattr(callback, "_draw", lambda *_: np.zeros((2, 2, 3), np.uint8))
    task = SegmentationTask.__new__(SegmentationTask)
    for epoch in range(1, 9):
        if epoch % (interval or 1) == 0:
            trainer = SimpleNamespace(
                current_epoch=epoch - 1, check_val_every_n_epoch=interval, is_global_zero=True, loggers=[]
            )
            callback.on_validation_batch_end(trainer, task, {"fields": ["a field"]}, None, 0)
            callback.on_validation_epoch_end(trainer, task)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"epoch_{epoch:03d}.png" for epoch in drawn]
