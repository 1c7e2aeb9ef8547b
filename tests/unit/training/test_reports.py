"""Tables and pictures at the end of a run."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cellvision.runtime.viability import compute_viability
from cellvision.training.callbacks import BestCheckpoint
from cellvision.training.confusion import draw_confusions
from cellvision.training.field_report import FieldRow, draw_field_viability, write_field_table
from cellvision.training.finish import print_scores
from cellvision.training.history import History, draw_curves, find_best_epoch, list_begins, write_history
from cellvision.training.phases import Phase

ROWS = [
    FieldRow(name="a", predicted=compute_viability(8, 2), true=compute_viability(9, 1), otsu=compute_viability(5, 5)),
    FieldRow(name="empty", predicted=compute_viability(0, 0), true=compute_viability(0, 0)),
]


def test_field_table_leaves_undefined_values_empty(tmp_path):
    write_field_table(ROWS, tmp_path / "fields.csv")
    first, empty = csv.DictReader((tmp_path / "fields.csv").read_text(encoding="utf-8").splitlines())
    assert first["predicted_viability_percent"] == "80.00"
    assert first["predicted_low_percent"] == "49.02"  # Wilson interval of 8 of 10
    assert first["otsu_live"] == "5"
    assert (empty["predicted_live"], empty["predicted_viability_percent"], empty["otsu_live"]) == ("0", "", "")


def test_pictures_show_something(tmp_path):
    draw_field_viability(ROWS, tmp_path / "viability.png")
    draw_confusions({"pixel": np.array([[9, 1], [2, 8]])}, ("background", "cell"), tmp_path / "confusion.png")
    rows = [{"epoch": i, "lr": 0.1, "train/loss": 1 / (i + 1), "val/pixel/miou": i / 9} for i in range(9)]
    draw_curves(rows, tmp_path / "curves.png")
    for name in ("viability", "confusion", "curves"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 5


def test_of_cells_the_background_is_missed_or_false(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    counts = np.array([[0, 2], [5, 18]])
    draw_confusions({"pixel": counts, "cell": counts}, ("background", "cell"), tmp_path / "confusion.png")
    pixels, cells = drawn
    for axes, column, row, texts in (
        (pixels, "background", "background", ["0", "2", "5", "18"]),
        (cells, "no cell", "no cell", ["2", "5", "18"]),
    ):
        assert [label.get_text() for label in axes.get_xticklabels()] == [column, "cell"]
        assert [label.get_text() for label in axes.get_yticklabels()] == [row, "cell"]
        assert [text.get_text() for text in axes.texts] == texts
    np.testing.assert_allclose(cells.images[0].get_array(), [[0, 2 / 20], [5 / 23, 18 / 23]])


def test_curves_mark_the_best_epoch_and_show_decades(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes))
    rows = [{"epoch": i, "lr": 0.1, "train/loss": 40 / (i + 1) ** 2, "val/mask/ap": i / 9} for i in range(7)]
    rows[3]["val/mask/ap"] = 0.9
    best = find_best_epoch(rows, "val/mask/ap", mode="max")
    draw_curves(rows, tmp_path / "curves.png", best=best)
    flat = [{**row, "train/loss": 2.0 + i} for i, row in enumerate(rows)]
    draw_curves(flat, tmp_path / "curves.png")
    assert (best, find_best_epoch(rows, "train/loss", mode="min"), find_best_epoch(rows, "x", mode="max")) == (
        3,
        6,
        None,
    )
    assert [axes.get_yscale() for axes in drawn[0]] == ["log", "linear", "linear"]
    assert [list(axes.lines[-1].get_xdata()) for axes in drawn[0]] == [[3, 3]] * 3
    assert drawn[0][0].lines[-1].get_label() == "best net, epoch 3"
    assert [axes.get_yscale() for axes in drawn[1]] == ["linear"] * 3
    assert len(drawn[1][0].lines) == 1
    for axes in drawn[0]:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_curves_part_and_name_phases(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))
    rows = [{"epoch": i, "lr": 0.1, "train/loss": 2.0 + i} for i in range(1, 6)]
    begins = list_begins([Phase(name="prune", epochs=2), Phase(name="distill", epochs=3), Phase(name="qat", epochs=1)])
    assert begins == {1: "prune", 3: "distill", 6: "qat"}
    draw_curves(rows, tmp_path / "curves.png", begins=begins)
    draw_curves(rows, tmp_path / "curves.png", begins={1: "prune"})
    assert [(text.get_text(), text.xy[0]) for text in drawn[0].texts] == [(" prune", 0.5), (" distill", 2.5)]
    assert not drawn[1].texts


@pytest.mark.parametrize(
    ("kept", "score", "best"),
    [(None, 0.3, 3), (None, None, None), (0.8, 0.9, 3), (0.8, 0.8, 1), (0.8, None, 1), (0.7, 0.6, None)],
)
def test_the_best_epoch_is_that_of_the_net_that_is_kept(tmp_path, monkeypatch, kept, score, best):
    """After a cut or in a new phase nothing is kept; or a net with a score that no epoch has, as it was rounded."""
    marked = []
    monkeypatch.setattr(
        "cellvision.training.history.draw_curves", lambda rows, path, *, best, begins: marked.append(best)
    )
    keeper = BestCheckpoint(folder=tmp_path, monitor="val/cell/f1", mode="max")
    keeper.score = kept
    history = History(folder=tmp_path)
    history.rows = [{"epoch": 1, "lr": 0.1, "val/cell/f1": 0.8}, {"epoch": 2, "lr": 0.1, "val/cell/f1": 0.5}]
    history.on_validation_epoch_end(None, None)
    found = {} if score is None else {"val/cell/f1": score}
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    trainer = SimpleNamespace(
        optimizers=[optimizer],
        callback_metrics=found,
        current_epoch=2,
        is_global_zero=True,
        callbacks=[history, keeper],
    )
    history.on_train_epoch_end(trainer, SimpleNamespace())
    assert marked == [best]


def test_history_has_a_column_for_every_score(tmp_path):
    write_history([{"epoch": 0, "lr": 0.1}, {"epoch": 1, "lr": 0.2, "val/loss": 0.5}], tmp_path / "history.csv")
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert rows[0]["val/loss"] == ""
    assert json.loads(rows[1]["val/loss"]) == 0.5


def test_the_table_names_scores_in_words(capsys):
    print_scores({"cell/f1": 0.5}, {"otsu": {"cell/f1": 0.25}}, title="fields")
    printed = capsys.readouterr().out
    assert "cells found" in printed
    assert "0.250" in printed


def test_a_single_epoch_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)  # its samples of the lines have colours as well
    rows = [{"epoch": 0, "lr": 0.1, "val/loss": 0.5, "val/mask/ap": 0.1}]
    draw_curves(rows, tmp_path / "one.png")
    draw_curves([{**rows[0], "val/loss": float("nan"), "val/mask/ap": float("nan")}], tmp_path / "none.png")
    one, none = (np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("one.png", "none.png"))
    coloured = [int((np.ptp(picture, axis=2) > 40).sum()) for picture in (one, none)]
    assert coloured[0] - coloured[1] > 2 * 60, "of two marks, each a disc of 9 px"
