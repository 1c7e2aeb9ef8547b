import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cellvision.compression.prune.sensitivity import draw_sensitivity, scan_sensitivity
from cellvision.models.build import build_model

IMAGE = torch.zeros(1, 1, 32, 32)


@pytest.fixture(scope="module")
def scan():
    """Score: how close results stay to those of the whole net; half of one layer says nothing at all."""
    torch.manual_seed(0)
    net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(8, 16), attention="gate")
    net.train().logits(torch.rand(4, 1, 32, 32) * 255)
    layers = net.encoder.levels[0][0]
    with torch.no_grad():
        for tensor in (layers[0].weight, layers[1].weight, layers[1].bias, layers[3].weight.transpose(0, 1)):
            tensor[:4] = 0
    before = copy.deepcopy(net.state_dict())
    images = torch.rand(2, 1, 32, 32) * 255
    with torch.no_grad():
        expected = net.eval().logits(images)["classes"]

    @torch.no_grad()
    def evaluate(trial):
        assert not trial.training
        return -float((trial.logits(images)["classes"] - expected).abs().mean())

    told = []
    rows = scan_sensitivity(net.train(), IMAGE, evaluate, progress=lambda done, total: told.append((done, total)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert told[-1] == (len(rows), len(rows))
    return rows


def test_each_layer_is_pruned_alone_by_each_ratio(scan):
    by_layer = {}
    for row in scan:
        by_layer.setdefault(row.layer, []).append(row)
    assert len(by_layer) == 8  # all but the head and the gate's one channel
    for rows in by_layer.values():
        assert [row.left for row in rows] == [rows[0].width * left // 4 for left in (3, 2, 1)]
        assert [row.macs for row in rows] == sorted((row.macs for row in rows), reverse=True)
        assert all(row.macs < 1 and row.parameters < 1 for row in rows)


def test_what_a_layer_does_shows_in_the_score(scan):
    silent = {row.left: row.score for row in scan if row.layer == "encoder.levels.0.0.0"}
    assert silent[6] == pytest.approx(0, abs=1e-5)
    assert silent[4] == pytest.approx(0, abs=1e-5)
    assert silent[2] < -1e-3
    others = [row.score for row in scan if row.layer != "encoder.levels.0.0.0"]
    assert max(others) < -1e-4


def test_the_most_sensitive_layer_is_on_top_whichever_way_is_better(scan, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    errors = [replace(row, score=-row.score) for row in scan]
    draw_sensitivity(scan, tmp_path / "a.png", base=0.0)
    draw_sensitivity(errors, tmp_path / "b.png", base=0.0, score_name="error", mode="min")
    first, second = (figure.axes[0] for figure in figures)
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in (first, second)]
    assert names[0] == names[1]
    assert (first.collections[-1].get_offsets() == second.collections[-1].get_offsets()).all()
    assert second.get_xlabel().startswith("rise of the error from 0")


def test_the_picture_grows_with_the_layers(scan, tmp_path):
    draw_sensitivity(scan, tmp_path / "all.png", base=0.0, score_name="closeness")
    draw_sensitivity(scan[:3], tmp_path / "one.png", base=0.0)
    sizes = {}
    for name in ("all", "one"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG"
            sizes[name], colours = picture.size, picture.convert("RGB").getcolors(1 << 20)
            assert len(colours) > 20
    assert sizes["all"][0] == sizes["one"][0]
    assert sizes["all"][1] > sizes["one"][1] + 100
