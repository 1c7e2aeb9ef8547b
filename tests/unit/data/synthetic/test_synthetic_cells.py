"""Generated dense cells: any number exactly, fixed bytes, in good time, and to be seen in the picture."""

import hashlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from cellvision.data.dataset import CellDataset
from cellvision.data.synthetic import SyntheticCells
from cellvision.errors import ConfigError

SMALL = {"height": 96, "width": 128, "cells": (20, 60)}


def compute_hash(sample):
    digest = hashlib.sha256()
    for array in (sample.image, sample.label_image, sample.cell_classes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def test_is_a_cell_dataset_and_travels_to_workers():
    data = SyntheticCells(
        fields=5, fields_per_well=2, cell_types=["round", "long"], planes=["phase", "nuclear"], **SMALL
    )
    assert isinstance(data, CellDataset)
    assert len(data) == len(data.names) == len(set(data.names)) == 5
    assert data.names is data.names  # views ask for them again and again
    assert data.groups is data.groups
    assert len(set(data.groups)) == 3
    assert data.classes == ("background", "round", "long")
    assert [(channel.name, channel.role) for channel in data.channels] == [("phase", ""), ("nuclear", "nuclear")]
    copy = pickle.loads(pickle.dumps(data))
    assert copy.fingerprint() == data.fingerprint()
    assert compute_hash(copy.sample(3)) == compute_hash(data.sample(3))
    assert set(np.concatenate([data.sample(i).cell_classes for i in range(5)])) == {1, 2}


@pytest.mark.parametrize(
    ("planes", "dtype"),
    [
        (("phase",), np.uint8),
        (("body",), np.uint16),
        (("phase", "nuclear"), np.uint16),
        (("nuclear", "body"), np.uint16),
    ],
)
def test_every_look_shows_the_cells(planes, dtype):
    data = SyntheticCells(fields=2, planes=planes, falloff=0.0, **SMALL)
    sample = data.sample(0)
    assert sample.image.shape == (len(planes), 96, 128)
    assert sample.image.dtype == dtype
    assert sample.pixel_size_um == 1.24
    cell = sample.label_image > 0
    for plane, image in zip(planes, sample.image.astype(float), strict=True):
        inside, outside = image[cell], image[~cell]
        if plane == "phase":  # darker and more uneven
            assert np.median(inside) < np.percentile(outside, 20)
            assert inside.std() > 1.5 * outside.std()
        else:
            assert np.percentile(inside, 90) > np.percentile(outside, 99)


def test_an_empty_field_has_light_and_no_cells():
    for planes in (("phase",), ("body", "nuclear")):
        sample = SyntheticCells(fields=1, planes=planes, height=40, width=50, cells=(0, 0)).sample(0)
        assert not sample.label_image.any()
        assert len(sample.cell_classes) == 0
        assert sample.image.std() > 0


@pytest.mark.parametrize("count", [300, 3000])
def test_as_many_cells_as_asked_for_in_good_time(count):
    begun = time.process_time()  # the clock would tell of what else the machine does
    sample = SyntheticCells(fields=1, height=520, width=704, cells=(count, count)).sample(0)
    assert time.process_time() - begun < 30
    assert len(np.unique(sample.label_image)) - 1 == len(sample.cell_classes) == count
    assert np.bincount(sample.label_image.ravel())[1:].min() >= 10


def test_small_fields_are_quick():
    data = SyntheticCells(fields=12, height=128, width=128, cells=(20, 60))
    seconds = []
    for index in range(12):
        begun = time.process_time()
        data.sample(index)
        seconds.append(time.process_time() - begun)
    assert min(seconds) < 0.5


def test_same_bytes_in_another_process():
    code = (
        "import hashlib, numpy as np; from cellvision.data.synthetic import SyntheticCells as S\n"
        "s = S(fields=2, seed=7, height=96, width=128, cells=(20, 60)).sample(1)\n"
        "d = hashlib.sha256()\n"
        "for a in (s.image, s.label_image, s.cell_classes): d.update(np.ascontiguousarray(a).tobytes())\n"
        "print(d.hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == compute_hash(SyntheticCells(fields=9, seed=7, **SMALL).sample(1))


def test_fields_depend_on_seed_and_index_only():
    few, many, other = (SyntheticCells(fields=n, seed=s, **SMALL) for n, s in ((3, 4), (30, 4), (3, 5)))
    assert compute_hash(few.sample(2)) == compute_hash(many.sample(2))
    assert len({compute_hash(few.sample(i)) for i in range(3)}) == 3
    assert compute_hash(few.sample(2)) != compute_hash(other.sample(2))
    assert len({few.fingerprint(), many.fingerprint(), other.fingerprint()}) == 3
    with pytest.raises(IndexError, match="field 3 of 3"):
        few.sample(3)


def test_cell_types_differ_in_shape_and_brightness():
    data = SyntheticCells(
        fields=4,
        height=300,
        width=300,
        cells=(60, 60),
        cell_types=("a", "b", "c"),
        planes=("body",),
        packing=(0.3, 0.3),
    )
    lights, areas = {1: [], 2: [], 3: []}, {1: [], 2: [], 3: []}
    for index in range(4):
        sample = data.sample(index)
        area = np.bincount(sample.label_image.ravel())
        light = np.bincount(sample.label_image.ravel(), weights=sample.image[0].ravel()) / area
        for label, kind in enumerate(sample.cell_classes, start=1):
            lights[kind].append(light[label] / light[0])
            areas[kind].append(area[label])
    assert np.median(areas[1]) < np.median(areas[2]) < np.median(areas[3])
    assert np.median(lights[1]) > np.median(lights[3])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cells": (0, 5462)}, r"cells=\(0, 5462\) in 256x256 px; need at most 5461, one per 12 px"),
        ({"cells": (5, 2)}, r"cells=\(5, 2\); need whole numbers in 0\.\.1000000, the least and the most"),
        ({"planes": ("phse",)}, "planes 'phse'; need one of: body, nuclear, phase; try: 'phase'"),
        ({"planes": ()}, r"planes=\[\]; need one or two different ones"),
        ({"planes": ("body", "body")}, "need one or two different ones"),
        ({"cell_types": tuple("abcdefg")}, "need at most 6"),
        ({"cell_types": ()}, "need at least one class besides background"),
        ({"packing": (0.0, 0.5)}, "packing"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ConfigError, match=text):
        SyntheticCells(**settings)
