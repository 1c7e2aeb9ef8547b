"""What is said at the start of a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from cellvision.models.centermask2.settings import NetSettings
from cellvision.training.record import (
    describe_absence,
    describe_counts,
    describe_crowding,
    describe_run,
    find_skipped,
    mark_latest,
)
from cellvision.types import IGNORE


class Counted:
    """A view of fields with so many cells each."""

    def __init__(self, counts, ignored=0):
        self.counts, self.ignored = counts, ignored

    def __len__(self):
        return len(self.counts)

    def sample(self, index):
        return SimpleNamespace(cell_classes=np.array([1] * self.counts[index] + [IGNORE] * self.ignored))


def describe(counts, ignored=0, net=None):
    data = SimpleNamespace(views={"train": Counted(counts, ignored)})
    return describe_crowding(net or SimpleNamespace(settings=NetSettings()), data)


@pytest.mark.parametrize(
    ("most", "enough"), [(1001, "post_nms=2000"), (1300, "post_nms=2000"), (3000, "post_nms=5000")]
)
def test_fields_with_more_cells_than_the_net_gives_are_told_with_the_setting(most, enough):
    text = describe([10] * 99 + [most])
    assert f"up to {most} cells, and the net gives at most 1000 per image; need room" in text
    assert text.endswith(f"; try: model.decoding.{enough}")


def test_nothing_is_said_where_there_is_room():
    assert describe([1000, 3], ignored=500) is None
    assert describe([5000], net=SimpleNamespace()) is None, "a net that finds no cells"


def test_annotations_that_were_left_out_are_told_by_split():
    views = {"train": SimpleNamespace(dataset=SimpleNamespace(skipped=("a.png: no mask",))), "val": SimpleNamespace()}
    views["val"].dataset = SimpleNamespace(skipped=())
    views["test"] = SimpleNamespace(dataset=object())
    assert find_skipped(SimpleNamespace(views=views)) == {"train": ("a.png: no mask",)}


def test_doubtful_counts_are_told_with_their_number():
    data = SimpleNamespace(views={"train": range(270)}, faults={"constant": ["a", "b"], "saturated": ["c"]})
    text = describe_counts(data)
    assert text.startswith(
        "3 of 270 training fields have a channel of doubtful counts (2 constant, first a; 1 saturated, first c); need "
    )
    data.faults = {}
    assert describe_counts(data) is None


@pytest.mark.parametrize(("pixels", "said"), [((9, 0, 0), True), ((9, 0, 1), False)])
def test_fields_without_any_cell_are_told(pixels, said):
    data = SimpleNamespace(views={"train": range(7)}, stats=SimpleNamespace(class_pixels=pixels))
    assert ("none of 7 training fields has an annotated cell" in (describe_absence(data) or "")) == said


def test_each_line_on_a_run_begins_with_what_it_is_about():
    data = SimpleNamespace(
        views={"train": Counted([2000, 3]), "val": Counted([1])},
        channels=[SimpleNamespace(name="grey")],
        faults={"constant": ["a"]},
        stats=SimpleNamespace(class_pixels=(5, 1)),
    )
    data.views["train"].dataset = SimpleNamespace(skipped=("a.png: no mask",))
    data.views["val"].dataset = SimpleNamespace()
    net = SimpleNamespace(
        spec=SimpleNamespace(name="centermask2"),
        parameters=lambda: [SimpleNamespace(numel=lambda: 1200)],
        report=("backbone resnet50 instead of the file's vovnet39", "random; norm batch, which is trained"),
        settings=NetSettings(),
    )
    lines = describe_run(data, net, monitor="val/mask/ap")
    assert lines[:5] == [
        "data      2 train, 1 val fields; channels grey",
        "skipped   1 annotations of train: a.png: no mask",
        "net       centermask2, 1,200 parameters; best by val/mask/ap",
        "net       backbone resnet50 instead of the file's vovnet39",
        "net       random; norm batch, which is trained",
    ]
    assert lines[5].startswith("warning   1 of 2 training fields have a channel of doubtful counts")
    assert lines[6].startswith("warning   training fields hold up to 2000 cells")
    assert len(lines) == 7


def test_a_link_leads_to_the_run_or_to_the_sweep_that_it_is_of(tmp_path):
    link = tmp_path / "latest"
    for folder, leads_to in (("a", "a"), ("sweep/0", "sweep"), ("sweep/1", "sweep")):
        mark_latest(tmp_path / folder, link)
        assert link.resolve() == tmp_path / leads_to
    link.unlink()
    link.mkdir()  # somebody's own folder
    mark_latest(tmp_path / "a", link)
    assert not link.is_symlink()
