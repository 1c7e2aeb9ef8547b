"""What a run with an instance net leaves at its end."""

from types import SimpleNamespace

import numpy as np

from cellvision.bundle import Splitting
from cellvision.data.batching import SubsetView
from cellvision.data.synthetic import SyntheticCells
from cellvision.runtime.pictures.error_sheet import ErrorField
from cellvision.runtime.pictures.marks import Marks
from cellvision.training import instance_report
from cellvision.training.finish import _find_pictures
from cellvision.training.instance_report import InstanceReport
from cellvision.training.pictures import Pictures


def test_cells_are_drawn_with_the_marks_of_the_runs_pictures(tmp_path, monkeypatch):
    asked, black = [], np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(instance_report, "draw_rows", lambda *_, **given: (asked.append(given), black)[1])
    monkeypatch.setattr(instance_report, "draw_error_sheet", lambda *_, **__: black)
    view = SubsetView(SyntheticCells(fields=1, height=64, width=64), [0], cache_mib=1)
    data = SimpleNamespace(held_out=view, channels=(), pixel_size_um=None)
    task = SimpleNamespace(splitting=Splitting(method="instances"), net=SimpleNamespace(spec=None), curves={})
    pictures = Pictures(folder=tmp_path, marks=["boxes", "numbers"], zoom=3)
    for callbacks in ([object(), pictures], [object()]):
        InstanceReport(_find_pictures(SimpleNamespace(callbacks=callbacks))).write(tmp_path, task, data)
    assert [(given["marks"], given["zoom"]) for given in asked] == [(Marks(boxes=True, numbers=True), 3), (None, None)]


def test_the_worst_fields_are_kept_once_each():
    true = np.zeros((20, 60), np.int32)
    for number in range(1, 5):
        true[5:15, 12 * number : 12 * number + 10] = number
    fields = [
        ErrorField(
            name=f"{found} found", image=true[None], pred_label_image=np.where(true <= found, true, 0),
            true_label_image=true,
        )
        for found in (3, 0, 4, 2, 0, 1)
    ]  # fmt: skip
    assert [field.name for field in instance_report._choose_worst(fields)] == ["0 found", "1 found", "2 found"]
    assert [field.errors.found_share for field in fields] == [0.75, 0.0, 1.0, 0.5, 0.0, 0.25]
    assert fields[0].errors.true_count == 4
