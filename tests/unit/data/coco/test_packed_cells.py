"""Packed annotations: what went in comes out, and loader processes do not copy them."""

import json
import pickle
import subprocess
import sys

import pytest

from cellvision.data.coco.packed_cells import CellRow, PackedCells, pack_cell

SHAPES = [
    [[0.1, 0, 2.30000000000001, 0, 2, 2e-7], [1, 1, 5, 1, 5, 5]],
    {"size": [2, 3], "counts": "231"},
    {"size": [2, 3], "counts": [2, 3, 1]},
]


def pack(rows):
    return [pack_cell(r.category, is_crowd=r.is_crowd, segmentation=json.dumps(r.segmentation)) for r in rows]


def test_cells_come_out_as_they_went_in():
    images = [[CellRow(at, at == 1, shape) for at, shape in enumerate(SHAPES)], [], [CellRow('a"ä', False, SHAPES[0])]]
    packed = PackedCells(map(pack, images))
    for cells in (packed, pickle.loads(pickle.dumps(packed))):
        assert len(cells) == 3
        assert list(cells) == images
    for outside in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            packed[outside]


def test_measures_are_kept_where_there_are_any():
    kept = {"area": 10**400, "bbox": [1, 2.5, None, "a"]}
    texts = [pack_cell("a", is_crowd=False, segmentation="[]", measures=one) for one in (kept, {}, None)]
    assert [row.measures for row in PackedCells([texts])[0]] == [kept, None, None]


CHILD = """
import multiprocessing, sys
from pathlib import Path
import psutil
from cellvision.data.coco.file import load_coco

def read_all(cells, queue):
    process = psutil.Process()
    begun = process.memory_full_info().uss
    for rows in cells:
        sum(number for row in rows for polygon in row.segmentation for number in polygon)
    queue.put((process.memory_full_info().uss - begun) / 2**20)

cells = load_coco(Path(sys.argv[1])).cells
if sys.argv[2] == "objects":
    cells = list(cells)
context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
child = context.Process(target=read_all, args=(cells, queue))
child.start()
print(queue.get())
child.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory that forked processes share")
def test_a_process_that_reads_all_cells_does_not_copy_them(tmp_path):
    polygon = [round(7.3 * i % 19, 2) for i in range(60)]
    tables = {
        "images": [{"id": i, "file_name": f"{i}.tif", "width": 20, "height": 20} for i in range(200)],
        "annotations": [
            {"id": at, "image_id": at % 200, "category_id": 1, "segmentation": [polygon]} for at in range(10_000)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    path = tmp_path / "cells.json"
    path.write_text(json.dumps(tables))

    def measure_mib(kind):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), kind], capture_output=True, text=True, check=True
        )
        return float(done.stdout)

    assert measure_mib("packed") < 3
    assert measure_mib("objects") > 15
