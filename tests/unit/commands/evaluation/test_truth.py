"""The COCO file that a bundle is scored against: which categories are classes, and what may be left out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from cellvision.commands.evaluation.truth import open_truth
from cellvision.errors import DataError
from cellvision.types import IGNORE

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]


@pytest.fixture
def coco(tmp_path):
    """A file with one cell of each category; its path is ``coco(names)``."""

    def write(names, segmentation=SQUARE):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 30), np.uint8))
        shapes = [[[x + 5 * at if i % 2 == 0 else x for i, x in enumerate(SQUARE[0])]] for at in range(len(names))]
        cells = [
            {"id": at, "image_id": 1, "category_id": at, "segmentation": shape}
            for at, (name, shape) in enumerate(zip(names, [segmentation, *shapes[1:]], strict=True))
            if name != "background"
        ]
        tables = {
            "images": [{"id": 1, "file_name": "a.tif", "width": 30, "height": 9}],
            "categories": [{"id": at, "name": name} for at, name in enumerate(names)],
            "annotations": cells,
        }
        (tmp_path / "truth.json").write_text(json.dumps(tables))
        return tmp_path / "truth.json"

    return write


def read(path, classes, **options):
    truth = open_truth(SimpleNamespace(classes=classes), images=path.parent, coco=path, **options)
    return truth.classes, next(truth.iterate_samples()).cell_classes.tolist()


def test_background_and_uncertain_are_no_classes(coco):
    live_dead = ("background", "live", "dead")
    assert read(coco(["background", "dead", "uncertain", "live"]), live_dead) == (live_dead, [2, IGNORE, 1])
    assert read(coco(["background", "nucleus", "uncertain"]), live_dead) == (("background", "cell"), [1, IGNORE])
    with pytest.raises(DataError, match="has the categories live, old; need live, dead, or a single category"):
        read(coco(["live", "old"]), live_dead)


def test_faulty_cells_are_left_out_where_asked(coco, capsys):
    path = coco(["cell", "uncertain"], segmentation=[[1, 10**400, 5, 1, 5, 5]])
    with pytest.raises(DataError, match=r"something else than numbers; .*--skip-faulty in evaluate"):
        read(path, ("background", "cell"))
    assert read(path, ("background", "cell"), skip_faulty=True)[1] == [IGNORE]
    said = capsys.readouterr().err
    assert "truth.json: 1 annotations left out, first annotation 0 of a.tif: polygon with something else" in said
