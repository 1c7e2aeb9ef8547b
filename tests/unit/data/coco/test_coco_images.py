"""Files found in folders below, images listed twice, and what may be left out of a COCO file."""

import json
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pycocotools import mask as coco_mask

from cellvision.data.coco import CocoDataset
from cellvision.data.coco.masks import compute_runs
from cellvision.errors import ConfigError, DataError
from cellvision.types import IGNORE

SIZE = (24, 30)


def disc(cy, cx, radius):
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return [np.stack([cx + radius * np.cos(turn), cy + radius * np.sin(turn)], axis=1).ravel().round(2).tolist()]


@pytest.fixture
def write(tmp_path):
    """A COCO file with one image entry per name and one big cell with a small one on it in each."""

    def make(names, *, where=(), name="train.json", **options):
        images = [{"id": 10 + at, "file_name": n, "width": SIZE[1], "height": SIZE[0]} for at, n in enumerate(names)]
        shapes = [disc(12, 14, 9), disc(12, 14, 4), disc(14, 18, 6)]
        annotations = [
            {"id": 100 * image["id"] + at, "image_id": image["id"], "category_id": 1, "segmentation": shape}
            for image in images
            for at, shape in enumerate(shapes)
        ]
        for path in where:
            (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "images" / path, np.full(SIZE, len(path), np.uint8))
        tables = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
        (tmp_path / name).write_text(json.dumps(tables))
        return CocoDataset(annotations=tmp_path / name, images=tmp_path / "images", **options)

    return make


def test_files_are_found_in_folders_below_where_asked(write):
    where = ["a.tif", "A172/b.tif", "test/SkBr3/c.tif"]
    data = write(["a.tif", "b.tif", "c.tif"], where=where, search_subfolders=True)
    assert data.names == ("a", "b", "c")
    assert [int(data.sample(i).image[0, 0, 0]) for i in range(3)] == [len(path) for path in where]
    with pytest.raises(DataError, match=r"2 faults: .*b\.tif is missing; .*c\.tif is missing"):
        write(["a.tif", "b.tif", "c.tif"])


def test_a_file_in_two_folders_is_a_fault_unless_it_is_where_the_name_says(write):
    names, where = ["a.tif", "b.tif"], ["x/a.tif", "y/a.tif", "b.tif", "x/b.tif"]
    with pytest.raises(DataError, match=r"1 fault: .*a\.tif may be .*x/a\.tif or .*y/a\.tif; need"):
        write(names, where=where, search_subfolders=True)
    data = write(["b.tif"], search_subfolders=True)
    assert int(data.sample(0).image[0, 0, 0]) == len("b.tif")


def test_images_listed_twice(write):
    names = ["a.tif", "b.tif", "a.tif"]
    with pytest.raises(DataError, match=r"file_name 'a\.tif' is given 2 times.*data\.repeated_images=keep"):
        write(names, where=["a.tif", "b.tif"])
    first = write(names, repeated_images="first")
    assert first.names == first.groups == ("a", "b")
    assert first.entry(0)["id"] == 10
    kept = write(names, repeated_images="keep")
    assert kept.names == ("a", "b", "a_12")
    assert kept.groups == ("a", "b", "a")  # so that a split never divides them
    assert len(kept.sample(2).cell_classes) == 3
    with pytest.raises(ConfigError, match="unknown repeated_images 'drop'; need one of: error, first, keep"):
        write(names, repeated_images="drop")


def test_images_of_another_list_are_left_out(write, tmp_path):
    write(["b.tif", "c.tif", "c.tif"], where=["a.tif", "b.tif", "c.tif"], name="val.json", repeated_images="keep")
    others = [tmp_path / "val.json"]
    data = write(["a.tif", "b.tif"], excluding=others)
    assert data.names == ("a",)
    assert data.fingerprint() != write(["a.tif", "b.tif"]).fingerprint()
    with pytest.raises(DataError, match=r"has no image named like '\*' that is not excluded"):
        write(["b.tif"], excluding=others)


def test_names_written_on_windows(write, tmp_path):
    where = ["p1/a.tif", "p2/b.tif"]
    write(["p2/b.tif"], where=where, name="val.json")
    for names in (["p1\\a.tif", "p2\\b.tif"], ["./p1/a.tif", ".\\p2\\b.tif"]):
        data = write(names)
        assert data.names == ("a", "b")
        assert data.groups == ("a", "b")
        assert [int(data.sample(i).image[0, 0, 0]) for i in range(2)] == [len(path) for path in where]
        assert data.describe(1)["file_name"] == names[1]
        assert write(names, excluding=[tmp_path / "val.json"]).names == ("a",)
        assert write(names, pattern="p2/*").names == ("b",)


@pytest.mark.parametrize("below", [True, False])
def test_accents_are_found_in_either_spelling(write, below):
    short, long = (unicodedata.normalize(form, "zellkörper.tif") for form in ("NFC", "NFD"))
    assert short != long
    for listed, stored, folder in ((short, long, "x"), (long, short, "y")):
        where = f"{folder}/{stored}"
        name = listed if below else f"{folder}/{listed}"
        data = write([name], where=[where], pattern="*", search_subfolders=below)
        assert int(data.sample(0).image[0, 0, 0]) == len(where)
        Path(data._paths[0]).unlink()


def test_groups_by_file_name(write):
    names = ["A172_Phase_A7_1_00d00h00m_1.tif", "A172_Phase_A7_2_00d00h00m_1.tif", "A172_Phase_B7_1_00d00h00m_1.tif"]
    data = write(names, where=names, group_pattern="^(.*?_Phase_[A-Z]+[0-9]+)_")
    assert data.groups == ("A172_Phase_A7", "A172_Phase_A7", "A172_Phase_B7")
    with pytest.raises(DataError, match="need a match in each file name"):
        write(names, group_pattern="(BV2)_")


def test_faulty_cells_are_left_out_where_asked(write, tmp_path):
    write(["a.tif"], where=["a.tif"])
    tables = json.loads((tmp_path / "train.json").read_text())
    tables["annotations"][1]["segmentation"] = [[1, 2, 3]]
    (tmp_path / "train.json").write_text(json.dumps(tables))
    options = {"annotations": tmp_path / "train.json", "images": tmp_path / "images"}
    with pytest.raises(DataError, match=r"polygon of 3 numbers; .*data\.faulty_cells=skip in training, --skip"):
        CocoDataset(**options)
    data = CocoDataset(**options, faulty_cells="skip")
    assert data.skipped == ("annotation 1001 of a.tif: polygon of 3 numbers",)
    assert len(data.sample(0).cell_classes) == 2
    tables["annotations"][0]["image_id"] = 5  # a wrong id is never skipped
    (tmp_path / "train.json").write_text(json.dumps(tables))
    with pytest.raises(DataError, match="1 fault: annotation 1000 has the unknown image 5"):
        CocoDataset(**options, faulty_cells="skip")
    with pytest.raises(ConfigError, match="unknown faulty_cells 'drop'; need one of: error, skip"):
        CocoDataset(**options, faulty_cells="drop")


def decode_masks(data):
    runs = [compute_runs(row.segmentation, height=SIZE[0], width=SIZE[1]) for row in data._file.cells[0]]
    rles = coco_mask.frPyObjects([{"size": list(SIZE), "counts": one.tolist()} for one in runs], *SIZE)
    return coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2
@pytest.mark.parametrize("overlap", ["first", "smallest"])
def test_who_gets_a_pixel_claimed_twice(write, overlap):
    data = write(["a.tif"], where=["a.tif"], overlap=overlap)
    masks = decode_masks(data)
    rank = [0, 1, 2] if overlap == "first" else np.argsort(masks.sum(axis=(1, 2)), kind="stable")
    expected = np.zeros(SIZE, np.int32)
    for cell in rank[::-1]:
        expected[masks[cell]] = cell + 1
    np.testing.assert_array_equal(data.sample(0).label_image, expected)
    lost = data.count_overlap(0)
    assert lost.claimed_px == masks.sum()
    assert lost.lost_px == masks.sum() - (expected > 0).sum() > 0
    assert lost.hidden_cells == (1 if overlap == "first" else 0)  # the small cell on the big one


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2
def test_crowds_lose_nothing_that_counts(write, tmp_path):
    write(["a.tif"], where=["a.tif"])
    tables = json.loads((tmp_path / "train.json").read_text())
    tables["annotations"][0]["iscrowd"] = 1
    del tables["annotations"][2]
    (tmp_path / "train.json").write_text(json.dumps(tables))
    for overlap in ("first", "smallest"):
        options = {"annotations": tmp_path / "train.json", "images": tmp_path / "images", "overlap": overlap}
        data = CocoDataset(**options)
        lost = data.count_overlap(0)
        assert (lost.claimed_px, lost.lost_px, lost.hidden_cells) == (decode_masks(data)[1].sum(), 0, 0)
        assert data.sample(0).cell_classes.tolist() == [IGNORE, 1]
    with pytest.raises(ConfigError, match="unknown overlap 'last'; need one of: first, smallest"):
        CocoDataset(**options | {"overlap": "last"})


def test_overlap_is_part_of_the_fingerprint_and_of_the_copy_in_a_worker(write):
    data = write(["a.tif"], where=["a.tif"])
    other = write(["a.tif"], overlap="smallest")
    assert data.fingerprint() != other.fingerprint()
    copy = pickle.loads(pickle.dumps(other))
    np.testing.assert_array_equal(copy.sample(0).label_image, other.sample(0).label_image)
