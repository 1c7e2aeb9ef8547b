"""``data=livecell`` on a generated folder that is laid out as LIVECell is, with the peculiarities of its lists."""

import json
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import pytest
import tifffile

from cellvision import app
from cellvision.data.coco import write_coco
from cellvision.data.synthetic import SyntheticCells
from cellvision.errors import DataError

CONF = Path(__file__).parents[4] / "conf"
CELLS = SyntheticCells(fields=9, height=52, width=70, cells=(15, 30))
NAMES = {
    "train": ["A172_Phase_A7_1_00d00h00m_1", "A172_Phase_A7_1_00d00h00m_2", "BV2_Phase_B4_1_00d00h00m_1"],
    "val": ["A172_Phase_A7_2_00d00h00m_1", "BV2_Phase_C4_2_00d00h00m_1"],
    "test": ["A172_Phase_C7_1_00d00h00m_1", "BV2_Phase_D4_1_00d00h00m_1"],
}
WELL = "^(.*?_Phase_[A-Z]+[0-9]+)_"


def write_images(root, samples, half):
    for sample in samples:
        folder = root / "images" / half / sample.name.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{sample.name}.tif", sample.image[0])


def write_list(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_coco(path, samples, classes=CELLS.classes, segmentation="polygons", annotations_by_id=True)
    tables = json.loads(path.read_text())
    for image in tables["images"]:
        del image["group"], image["um_per_pixel"]
    path.write_text(json.dumps(tables))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Lists of three splits; train repeats one of its images under another id, and shares one with val."""
    root = tmp_path_factory.mktemp("LIVECell_dataset_2021")
    drawn = iter(CELLS.sample(i) for i in range(len(CELLS)))
    splits = {split: [replace(next(drawn), name=name) for name in names] for split, names in NAMES.items()}
    for split, samples in splits.items():
        write_images(root, samples, "livecell_test_images" if split == "test" else "livecell_train_val_images")
        listed = [*samples, samples[0], splits["val"][1]] if split == "train" else samples
        write_list(root / f"annotations/LIVECell/livecell_coco_{split}.json", listed)
        of_one_type = [sample for sample in samples if sample.name.startswith("A172")]
        write_list(root / f"annotations/LIVECell_single_cells/a172/{split}.json", of_one_type)
    return root


def build(root, *overrides):
    overrides = ["run_dir=unused", "data=livecell", f"data.root={root}", "data.workers=0", *overrides]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        data = app.build_data(hydra.compose("train", overrides=overrides).data)
    data.setup()
    return data


def test_the_whole_set(root):
    data = build(root, "data.augment.crop.size=32", "data.batch_size=2")
    assert data.classes == ("background", "cell")
    repeated = f"{NAMES['train'][0]}_4"  # its second id; the image that val lists is left out
    assert set(data.views["train"].names) == {*NAMES["train"], repeated}
    assert set(data.views["val"].names) == set(NAMES["val"])
    assert set(data.views["test"].names) == set(NAMES["test"])
    assert data.image_dtypes == ("float32", "uint8")
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 1, 32, 32)
    drawn = iter(CELLS.sample(i) for i in range(len(CELLS)))
    for split, names in NAMES.items():
        view = data.views[split]
        for name in names:
            sample, expected = view.sample(view.names.index(name)), next(drawn)
            np.testing.assert_array_equal(sample.image, expected.image)
            np.testing.assert_array_equal(sample.label_image, expected.label_image)


def test_lists_of_one_cell_type(root):
    data = build(root, f"data.annotations={root}/annotations/LIVECell_single_cells/a172/")
    assert set(data.views["train"].names) == set(NAMES["train"][:2])
    assert data.views["val"].names == tuple(NAMES["val"][:1])


def test_patterns_choose_fields(root):
    assert set(build(root, "data.pattern=BV2_*").views["test"].names) == set(NAMES["test"][1:])


def test_a_well_is_a_group_where_asked(root):
    with pytest.raises(DataError, match="leakage between splits, 1 fault: group 'A172_Phase_A7' is in train and val"):
        build(root, f'data.group_pattern="{WELL}"')
    data = build(root, f'data.group_pattern="{WELL}"', "data.pattern=BV2_*")
    assert set(data.views["train"].groups) == {"BV2_Phase_B4"}


def test_what_the_lists_share_is_a_fault_unless_left_out(root):
    with pytest.raises(DataError, match="leakage between splits"):
        build(root, "data.datasets.train.excluding=[]")
    with pytest.raises(DataError, match="is given 2 times"):
        build(root, "data.repeated_images=error")
    assert len(build(root, "data.repeated_images=first").views["train"]) == 3
