import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cellvision.metrics.instances.coco_ap import PrCurve
from cellvision.training.pr_curves import draw_pr_curves

RECALL = np.linspace(0, 1, 101)


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that was saved."""
    axes, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (axes.append(self.axes[0]), save(self, *a, **k))[1])
    return axes


def test_every_curve_is_a_line_with_its_name(tmp_path, drawn):
    curves = {
        "IoU 0.50": PrCurve(recall=RECALL, precision=1 - RECALL**4),
        "IoU 0.75": PrCurve(recall=RECALL[::10], precision=1 - RECALL[::10]),
    }
    draw_pr_curves(curves, tmp_path / "pr.png", title="validation")
    with Image.open(tmp_path / "pr.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
        assert picture.convert("L").getextrema()[0] < 50
    (axes,) = drawn
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)
    for line, curve in zip(axes.lines, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), curve.recall)
        np.testing.assert_array_equal(line.get_ydata(), curve.precision)
    assert axes.get_title() == "validation"


def test_unknown_precisions_are_gaps(tmp_path, drawn):
    precision = np.where(RECALL > 0.5, -1.0, 0.9)
    precision[0] = np.nan
    one = PrCurve(recall=RECALL, precision=np.where(RECALL == 0.5, 0.7, -1))
    draw_pr_curves({"a": PrCurve(recall=RECALL, precision=precision), "one point": one}, tmp_path / "p.png")
    known = drawn[0].lines[0].get_ydata()
    assert np.isnan(known[0])
    assert np.isnan(known[RECALL > 0.5]).all()
    assert (known[1:51] == 0.9).all()
    assert [line.get_marker() for line in drawn[0].lines] == ["", "."]


def test_a_dot_is_on_the_curve_at_the_chosen_recall(tmp_path, drawn):
    curves = {
        "mask": PrCurve(recall=RECALL, precision=1 - RECALL / 2, chosen_recall=0.625),
        "box": PrCurve(recall=RECALL, precision=RECALL),
    }
    draw_pr_curves(curves, tmp_path / "pr.png")
    (dots,) = drawn[0].collections
    np.testing.assert_allclose(dots.get_offsets(), [[0.625, 0.6875]])


@pytest.mark.parametrize(("count", "legend"), [(0, False), (12, True), (13, False)])
def test_a_legend_only_where_it_leaves_room(tmp_path, drawn, count, legend):
    curve = PrCurve(recall=RECALL, precision=RECALL)
    draw_pr_curves({f"class {i}": curve for i in range(count)}, tmp_path / "pr.png")
    assert len(drawn[0].lines) == count
    assert (drawn[0].get_legend() is not None) == legend
