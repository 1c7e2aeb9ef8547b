"""Oracle: scipy.ndimage for connected components."""

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from cellvision.data.dataset import CellDataset
from cellvision.data.folder import FolderDataset
from cellvision.errors import ConfigError, DataError
from cellvision.types import IGNORE

RNG = np.random.default_rng(0)


def write(root, masks):
    for name in ("images", "labels"):
        (root / name).mkdir(exist_ok=True)
    for number, (stem, mask) in enumerate(masks.items()):
        tifffile.imwrite(root / "images" / f"{stem}.ome.tif", np.full(mask.shape, number, np.uint16), ome=True)
        tifffile.imwrite(root / "labels" / f"{stem}.tif", mask)
    return root


def test_label_images(tmp_path):
    mask = np.zeros((9, 12), np.uint16)
    mask[1:3, 1:4], mask[4:6, 2:5] = 4, 2
    data = FolderDataset(
        root=write(tmp_path, {"A1_s1": mask, "A1_s2": mask * 0}), group_pattern="(.*)_s", classes=["nucleus"]
    )
    assert isinstance(data, CellDataset)
    assert data.classes == ("background", "nucleus")
    assert data.names == ("A1_s1", "A1_s2")
    assert data.groups == ("A1", "A1")
    sample = data.sample(0)
    np.testing.assert_array_equal(sample.label_image, mask)
    assert sample.cell_classes.tolist() == [IGNORE, 1, IGNORE, 1]
    np.testing.assert_array_equal(sample.class_map, mask > 0)
    assert len(data.sample(1).cell_classes) == 0


def test_class_maps_become_cells_and_stay_the_same_map(tmp_path):
    mask = RNG.choice([0, 0, 1, 2, IGNORE], (40, 50)).astype(np.uint8)
    data = FolderDataset(
        root=write(tmp_path, {"a": mask}), labels_are="classes", classes=["background", "live", "dead"]
    )
    sample = data.sample(0)
    np.testing.assert_array_equal(sample.class_map, mask)
    counts = [ndimage.label(mask == k, structure=np.ones((3, 3)))[1] for k in (1, 2, IGNORE)]
    assert [int((sample.cell_classes == k).sum()) for k in (1, 2, IGNORE)] == counts
    assert sample.label_image.max() == sum(counts) == len(sample.cell_classes)
    assert data.groups == ("a",)


def test_foreground_masks(tmp_path):
    mask = (RNG.random((40, 50)) < 0.4).astype(np.uint8) * 255
    data = FolderDataset(root=write(tmp_path, {"a": mask}), labels_are="foreground")
    sample = data.sample(0)
    assert sample.label_image.max() == ndimage.label(mask, structure=np.ones((3, 3)))[1]
    assert set(sample.cell_classes) == {1}
    with pytest.raises(DataError, match=r"holds 255 and no class.*labels_are=foreground"):
        FolderDataset(root=tmp_path, labels_are="classes").sample(0)


def test_unknown_values_in_a_class_map(tmp_path):
    root = write(tmp_path, {"a": np.array([[0, 1, 2, 9]], np.uint8)})
    with pytest.raises(DataError, match=r"a\.tif holds the values \[2, 9\]; need 0 to 1 \(background, cell\), or 255"):
        FolderDataset(root=root, labels_are="classes").sample(0)


def test_missing_masks_and_other_sizes_are_listed(tmp_path):
    root = write(tmp_path, {name: np.zeros((4, 5), np.uint8) for name in "abcd"})
    (root / "labels" / "a.tif").unlink()
    tifffile.imwrite(root / "labels" / "b.tif", np.zeros((5, 4), np.uint8))
    tifffile.imwrite(root / "labels" / "c.tiff", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError) as caught:
        FolderDataset(root=root)
    text = str(caught.value)
    assert "3 faults: a.ome.tif has no label file" in text
    assert "b.ome.tif is (4, 5) px but b.tif is (5, 4)" in text
    assert "c.ome.tif has c.tif, c.tiff" in text or "c.ome.tif has c.tiff, c.tif" in text
    assert FolderDataset(root=root, pattern="d*").names == ("d",)


def test_two_images_of_one_stem(tmp_path):
    root = write(tmp_path, {"a": np.zeros((4, 5), np.uint8)})
    tifffile.imwrite(root / "images" / "a.tif", np.zeros((4, 5), np.uint16))
    with pytest.raises(DataError, match=r"several images named \['a'\]"):
        FolderDataset(root=root)


def test_folders_of_ones_own(tmp_path):
    root = write(tmp_path, {"a": np.ones((4, 5), np.uint8)})
    data = FolderDataset(images=root / "images", labels=root / "labels", channels=["phase"])
    assert data.channels[0].name == "phase"
    for wrong in ({}, {"root": root, "images": root}, {"images": root}):
        with pytest.raises(ConfigError, match="need root, or images and labels"):
            FolderDataset(**wrong)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"labels_are": "masks"}, ConfigError, "unknown labels_are 'masks'; need one of: cells, classes, foreground"),
        ({"classes": ["live", "dead"]}, ConfigError, "labels_are=cells with the classes background, live, dead"),
        ({"classes": []}, ConfigError, "need at least one class besides background"),
        ({"classes": ["live", "background"]}, ConfigError, "background first or left out"),
        ({"classes": ["live", "live"], "labels_are": "classes"}, ConfigError, "each once"),
        ({"group_pattern": "(A"}, ConfigError, "need a regular expression"),
        ({"group_pattern": "A."}, ConfigError, "'A.' has no group; need one in parentheses"),
        ({"group_pattern": "(B.)"}, DataError, "does not match 1 fault: A1; need a match in each file stem"),
        ({"pattern": "*.png"}, DataError, "none named like '*.png'"),
    ],
)
def test_settings_that_cannot_work(tmp_path, options, error, words):
    root = write(tmp_path, {"A1": np.ones((4, 5), np.uint8)})
    with pytest.raises(error) as caught:
        FolderDataset(root=root, **options)
    assert words in str(caught.value)


def test_fingerprint_follows_masks_and_meaning(tmp_path):
    root = write(tmp_path, {"a": np.ones((4, 5), np.uint8)})
    seen = {FolderDataset(root=root).fingerprint(), FolderDataset(root=root, labels_are="classes").fingerprint()}
    write(tmp_path, {"a": np.zeros((4, 5), np.uint8)})
    seen.add(FolderDataset(root=root).fingerprint())
    assert len(seen) == 3
