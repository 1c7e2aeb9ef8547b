"""Generated cells: exact truth, fixed bytes, and a task that a threshold does not solve."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from skimage.filters import threshold_otsu

from cellvision.data.dataset import CellDataset
from cellvision.data.livedead import LiveDeadDataset, write_livedead_folder
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.data.synthetic.optics import Camera, record_counts, spread_light
from cellvision.data.synthetic.phantom import draw_cell
from cellvision.errors import ConfigError, DataError

SMALL = {"height": 96, "width": 128, "cells": (8, 14)}


def compute_hash(sample):
    digest = hashlib.sha256()
    for array in (sample.image, sample.label_image, sample.cell_classes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def test_is_a_cell_dataset_and_travels_to_workers():
    dataset = SyntheticLiveDead(fields=5, **SMALL)
    assert isinstance(dataset, CellDataset)
    assert len(dataset) == len(dataset.names) == len(dataset.groups) == len(set(dataset.names)) == 5
    assert [channel.role for channel in dataset.channels] == ["nuclear", "live", "dead"]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint() == dataset.fingerprint()
    assert compute_hash(copy.sample(3)) == compute_hash(dataset.sample(3))


def test_sample_has_the_documented_shapes():
    sample = SyntheticLiveDead(fields=1, **SMALL).sample(0)
    assert (sample.image.shape, sample.image.dtype) == ((3, 96, 128), np.uint16)
    assert (sample.label_image.shape, sample.label_image.dtype) == ((96, 128), np.int32)
    assert sample.cell_classes.dtype == np.int64
    assert set(sample.cell_classes) <= {1, 2}
    assert sample.pixel_size_um == 0.65


def test_same_bytes_in_another_process():
    code = (
        "import hashlib, numpy as np; from cellvision.data.synthetic import SyntheticLiveDead as S\n"
        "s = S(fields=2, seed=7, height=96, width=128, cells=(8, 14)).sample(1)\n"
        "d = hashlib.sha256()\n"
        "for a in (s.image, s.label_image, s.cell_classes): d.update(np.ascontiguousarray(a).tobytes())\n"
        "print(d.hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == compute_hash(SyntheticLiveDead(fields=9, seed=7, **SMALL).sample(1))


def test_fields_depend_on_seed_and_index_only():
    few, many, other = (SyntheticLiveDead(fields=n, seed=s, **SMALL) for n, s in ((3, 4), (30, 4), (3, 5)))
    assert compute_hash(few.sample(2)) == compute_hash(many.sample(2))
    assert len({compute_hash(few.sample(i)) for i in range(3)}) == 3
    assert compute_hash(few.sample(2)) != compute_hash(other.sample(2))
    assert few.fingerprint() != other.fingerprint()
    assert few.fingerprint() != many.fingerprint()


def test_every_label_is_one_region_and_has_one_class():
    touching = 0
    for index in range(4):
        sample = SyntheticLiveDead(fields=4, seed=2, height=160, width=160, cells=(40, 60)).sample(index)
        labels = sample.label_image
        assert np.array_equal(np.unique(labels), np.arange(len(sample.cell_classes) + 1))
        for label in range(1, labels.max() + 1):
            assert ndimage.label(labels == label)[1] == 1
        below, above = labels[1:], labels[:-1]
        touching += np.sum((below != above) & (below > 0) & (above > 0))
    assert touching > 100


def test_wells_group_fields_and_share_staining():
    dataset = SyntheticLiveDead(fields=7, fields_per_well=3, **SMALL)
    assert [dataset.groups.count(group) for group in dict.fromkeys(dataset.groups)] == [3, 3, 1]
    assert dataset.sample(4).group == dataset.groups[4]


def test_empty_and_crowded_fields():
    empty = SyntheticLiveDead(fields=1, height=64, width=64, cells=(0, 0)).sample(0)
    assert empty.label_image.max() == 0
    assert len(empty.cell_classes) == 0
    crowded = SyntheticLiveDead(fields=1, height=96, width=96, cells=(200, 200), dead_fraction=(0.0, 0.0)).sample(0)
    assert np.mean(crowded.label_image > 0) > 0.7
    assert set(crowded.cell_classes) == {1}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (31, 33)])
def test_odd_sizes(height, width):
    sample = SyntheticLiveDead(fields=1, height=height, width=width).sample(0)
    assert sample.image.shape == (3, height, width)


def test_cell_sizes_follow_the_micrometres():
    settings = {"fields": 6, "height": 300, "width": 300, "cells": (12, 12), "dead_fraction": (0.0, 0.0)}
    for pixel_size_um in (0.5, 1.0):
        dataset = SyntheticLiveDead(pixel_size_um=pixel_size_um, diameter_um=(18.0, 18.0), **settings)
        areas = np.concatenate([np.bincount(dataset.sample(i).label_image.ravel())[1:] for i in range(6)])
        diameter_um = 2 * np.sqrt(np.median(areas) / np.pi) * pixel_size_um
        assert diameter_um == pytest.approx(18.0, rel=0.1)


def test_stains_tell_live_from_dead():
    rng = np.random.default_rng(0)
    live = [draw_cell(rng, kind=1, radius_px=14, ambiguous=False) for _ in range(30)]
    dead = [draw_cell(rng, kind=2, radius_px=14, ambiguous=False) for _ in range(30)]
    for cell in live + dead:
        assert np.all(cell.emission[:, ~cell.mask] == 0)
    assert all(cell.emission[2].max() == 0 for cell in live)
    assert np.median([c.emission[2].max() for c in dead]) > 60
    assert np.median([c.emission[1].max() for c in dead]) < 0.1 * np.median([c.emission[1].max() for c in live])
    assert np.median([c.emission[0].max() for c in dead]) > 1.3 * np.median([c.emission[0].max() for c in live])
    assert np.median([c.mask.sum() for c in dead]) < 0.75 * np.median([c.mask.sum() for c in live])


def test_camera_noise_has_the_stated_gain():
    camera = Camera(counts_per_photon=5.0, offset_counts=100.0, read_noise_counts=3.0)
    counts = record_counts(np.random.default_rng(0), np.full((1, 400, 400), 40.0), camera).astype(float)
    assert counts.mean() == pytest.approx(100 + 5 * 40, rel=0.005)
    # Poisson: 25 counts^2 per photon; rounding adds a twelfth.
    assert counts.var() == pytest.approx(25 * 40 + 9 + 1 / 12, rel=0.02)


def test_camera_saturates_at_its_bit_depth():
    sample = SyntheticLiveDead(fields=1, counts_per_photon=900.0, bit_depth=12, **SMALL).sample(0)
    assert sample.image.max() == 4095


def test_bleed_through_reaches_other_channels_only_where_stated():
    emission = np.zeros((3, 64, 64), np.float32)
    emission[1, 24:40, 24:40] = 100.0
    pure = spread_light(np.random.default_rng(0), emission, bleed_through=np.eye(3), pixel_size_um=0.65)
    assert np.ptp(pure[2]) < 1e-3
    leaky = np.eye(3)
    leaky[2, 1] = 0.3
    light = spread_light(np.random.default_rng(0), emission, bleed_through=leaky, pixel_size_um=0.65)
    assert 15 < light[2, 32, 32] - light[2, 0, 0] < 50
    assert np.ptp(light[0]) < 1e-3


def test_otsu_on_the_dead_stain_is_not_enough_but_all_channels_are():
    dataset = SyntheticLiveDead(fields=16, seed=3)
    hits, features, dead = [], [], []
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        stained = ndimage.binary_opening(sample.image[2] > threshold_otsu(sample.image[2]))
        counts = sample.image - np.percentile(sample.image, 5, axis=(1, 2))[:, None, None]
        for label, kind in enumerate(sample.cell_classes, start=1):
            inside = sample.label_image == label
            hits.append((stained & inside).sum() > 8)
            hoechst, calcein, pi = counts[:, inside]
            features.append([np.percentile(hoechst, 95), np.percentile(pi, 95), np.median(calcein), inside.sum()])
            dead.append(kind == 2)
    hits, dead = np.array(hits), np.array(dead)
    assert 2 * (hits & dead).sum() / (hits.sum() + dead.sum()) < 0.85

    x = np.log(np.clip(features, 1, None))
    x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
    half = len(x) // 2
    weights = np.linalg.lstsq(x[:half], 2.0 * dead[:half] - 1, rcond=None)[0]
    assert np.mean((x[half:] @ weights > 0) == dead[half:]) > 0.93


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"cells": (5, 2)}, "cells="),
        ({"cells": 7}, "the least and the most"),
        ({"fields": 0}, "fields=0"),
        ({"height": 3.5}, "whole numbers"),
        ({"seed": -1}, "seed=-1"),
        ({"dead_fraction": (0.2, 1.2)}, "dead_fraction="),
        ({"bit_depth": 8}, "bit_depth=8"),
        ({"falloff": float("nan")}, "falloff=nan"),
        ({"bleed_through": ((1, 0), (0, 1))}, "3 rows of 3 shares"),
        ({"bleed_through": ((1, 0, 0), (0, 1, 0), (0, -1, 1))}, "0 or more"),
    ],
)
def test_settings_out_of_range(setting, text):
    with pytest.raises(ConfigError, match=text):
        SyntheticLiveDead(**setting)


def test_settings_may_be_lists_as_read_from_yaml():
    lists = SyntheticLiveDead(fields=1, cells=[3, 4], bleed_through=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    tuples = SyntheticLiveDead(fields=1, cells=(3, 4), bleed_through=((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert lists.fingerprint() == tuples.fingerprint()


def test_index_out_of_range():
    with pytest.raises(IndexError, match="field 2 of 2"):
        SyntheticLiveDead(fields=2).sample(2)


def test_folder_reads_back_as_it_was(tmp_path):
    dataset = SyntheticLiveDead(fields=3, fields_per_well=2, **SMALL)
    root = write_livedead_folder(dataset, tmp_path / "cells", splits={"train": [0, 1], "val": [2]})
    read = LiveDeadDataset(root=root, split="train")
    assert read.names == dataset.names[:2]
    assert read.groups == dataset.groups[:2]
    assert [channel.name for channel in read.channels] == ["hoechst", "calcein", "pi"]
    for index in range(2):
        ours, theirs = dataset.sample(index), read.sample(index)
        assert compute_hash(ours) == compute_hash(theirs)
        assert theirs.pixel_size_um == 0.65
    with tifffile.TiffFile(root / "images" / f"{dataset.names[0]}.tif") as tiff:
        assert tiff.is_ome
        assert tiff.pages[0].dtype == np.uint16
    assert tifffile.imread(root / "labels" / f"{dataset.names[0]}.tif").dtype == np.uint16


def test_folder_has_equal_bytes_and_is_never_mixed(tmp_path):
    dataset = SyntheticLiveDead(fields=1, height=40, width=40)
    first, second = (write_livedead_folder(dataset, tmp_path / name) for name in "ab")
    for path in first.rglob("*.*"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    with pytest.raises(DataError, match="already has images"):
        write_livedead_folder(dataset, first)
