import tifffile

from cellvision.bundle import Detecting
from cellvision.commands.predict import collect_images, predict_images
from cellvision.runtime.predictor import Predictor
from dot_net import draw_dots, write_dot_bundle


def test_instance_bundles_write_labels_pictures_and_tables(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    image = draw_dots((60, 70), [(20, 20), (40, 50), (12, 55)], 8, dead={1})
    tifffile.imwrite(tmp_path / "in" / "a.tif", image, photometric="minisblack")
    out = tmp_path / "out"
    predictor = Predictor(write_dot_bundle(tmp_path / "b"))
    assert predict_images(predictor, collect_images([tmp_path / "in"], out_dir=out), out) == {}
    assert capsys.readouterr().out.startswith("a: 3 cells, viability 66.7 % (")
    assert sorted(path.name for path in out.iterdir()) == ["a_labels.tif", "a_overlay.png", "cells.csv", "fields.csv"]
    header = (out / "cells.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.endswith("mean_dots,mean_radius,mean_dead,p_live,score")


def test_notes_of_a_result_are_said(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    image = draw_dots((60, 70), [(20, 20), (40, 50), (12, 55)], 8)
    tifffile.imwrite(tmp_path / "in" / "a.tif", image, photometric="minisblack")
    images = collect_images([tmp_path / "in"], out_dir=tmp_path / "out")
    predictor = Predictor(write_dot_bundle(tmp_path / "b", detecting=Detecting(max_cells=2)))
    assert predict_images(predictor, images, tmp_path / "out", overlay=False) == {}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("a: note: 1 of 1 tiles of ")
    assert said[0].endswith("export.py with max_cells=4")
