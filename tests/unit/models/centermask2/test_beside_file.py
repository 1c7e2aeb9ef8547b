"""A config file together with settings beside it, with weights and without: what it becomes, and what is said."""

import pytest
import torch

from cellvision.models.build import build_model
from cellvision.models.centermask2.config_file.beside import list_changes, list_untaken
from cellvision.models.centermask2.config_file.reader import read_config_file
from cellvision.types import DataStats, Targets

FILE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  MASK_ON: True
  MASKIOU_ON: True
  WEIGHTS: "vovnet39_ese.pth"
  PIXEL_STD: [1.0, 1.0, 1.0]
  BACKBONE: {NAME: build_fcos_vovnet_fpn_backbone, FREEZE_AT: 2}
  VOVNET: {CONV_BODY: "V-39-eSE", NORM: "FrozenBN", OUT_FEATURES: ["stage3", "stage4", "stage5"]}
  FPN: {IN_FEATURES: ["stage3", "stage4", "stage5"], OUT_CHANNELS: 32}
  PROPOSAL_GENERATOR: {NAME: "FCOS"}
  FCOS: {NUM_CLS_CONVS: 1, NUM_BOX_CONVS: 1}
  ROI_HEADS: {NAME: "CenterROIHeads", IN_FEATURES: ["p3", "p4", "p5"]}
  ROI_MASK_HEAD:
    {NAME: "SpatialAttentionMaskHead", ASSIGN_CRITERION: "ratio", NUM_CONV: 1, POOLER_RESOLUTION: 14, CONV_DIM: 32}
  ROI_MASKIOU_HEAD: {NUM_CONV: 1, CONV_DIM: 32}
  RETINANET: {NUM_CLASSES: 80}
DATASETS: {TRAIN: ["coco_2017_train"]}
SOLVER: {BASE_LR: 0.01, STEPS: [60000, 80000]}
INPUT: {MIN_SIZE_TRAIN: [580, 600], MIN_SIZE_TEST: 600}
"""
LEFT = [
    "not taken from the file: MODEL.WEIGHTS=vovnet39_ese.pth (model.weights=FILE loads weights)",
    "not taken from the file: SOLVER.BASE_LR=0.01, SOLVER.STEPS=[60000,80000] (steps and rates are set in optim and "
    "trainer, batches in data)",
    "not taken from the file: INPUT.MIN_SIZE_TRAIN=[580,600] (training images are changed by data.augment)",
    "not taken from the file: INPUT.MIN_SIZE_TEST=600 (fields are scored at their own size)",
    "not taken from the file: MODEL.FCOS.NUM_CLASSES=80 (the data has 1)",
    "not taken from the file: DATASETS.TRAIN (outside of MODEL; set it in the settings of this run)",
    "not taken from the file: MODEL.RETINANET.NUM_CLASSES (FCOS proposes the boxes)",
    "not taken from the file: MODEL.VOVNET.OUT_FEATURES (MODEL.FPN.IN_FEATURES decides)",
]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "V_39.yaml"
    file.write_text(FILE)
    return str(file)


def build(path, **more):
    torch.manual_seed(0)
    return build_model(name="centermask2", in_channels=1, classes=["background", "cell"], config_file=path, **more)


def make_batch():
    """8-bit counts: bright squares on dark ground."""
    labels = torch.zeros(2, 64, 64, dtype=torch.int32)
    labels[:, 8:24, 8:24], labels[:, 36:56, 30:50] = 1, 2
    noise = torch.randint(0, 40, (2, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    classes = torch.ones(2, dtype=torch.int64)
    targets = Targets(
        class_map=(labels > 0).long(), distance=(labels > 0).float(), label_image=labels, cell_classes=(classes,) * 2
    )
    return (labels > 0).unsqueeze(1) * 200.0 + noise, targets


def test_a_published_file_trains_without_its_weights(path):
    net = build(path)
    assert (net.settings.norm, net.settings.freeze_at) == ("batch", 0)
    assert (net.settings.pixel_mean, net.settings.pixel_std) == (None, None)
    assert set(net.report) == {
        "freeze_at 0 instead of the file's 2",
        "norm batch instead of the file's frozen",
        "pixel_mean none instead of the file's [123.675,116.28,103.53]",
        "pixel_std none instead of the file's [1,1,1]",
        "random; norm batch, which is trained",
        *LEFT,
    }
    net.set_statistics(DataStats(offset=(10.0,), scale=(220.0,), class_pixels=(9, 1)))
    images, targets = make_batch()
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-4)
    totals = []
    for _ in range(3):
        totals.append(sum(net.losses(images, targets).values()))
        optimizer.zero_grad()
        totals[-1].backward()
        optimizer.step()
    assert totals[0] < 20
    assert totals[-1] < totals[0]
    net.eval()
    with torch.no_grad():
        assert sum(net.losses(images, targets).values()) < 1000  # 0..255 into a random net once made millions


def test_with_weights_a_file_stays_as_it_is(path, tmp_path):
    weights = tmp_path / "a.pth"
    torch.save({"model": build(path).detector.state_dict()}, weights)
    net = build(path, weights=str(weights))
    assert (net.settings.norm, net.settings.freeze_at, net.settings.pixel_std) == ("frozen", 2, (1.0,) * 3)
    assert net.report[: len(LEFT) - 1] == tuple(LEFT[1:])
    assert not [line for line in net.report if "instead of" in line]
    assert build_model(**net.config).config == net.config


def test_what_is_set_beside_a_file_wins_and_is_said(path):
    net = build(path, backbone="vovnet19_slim", fpn_channels=32, decoding={"score_threshold": 0.2}, norm="group")
    assert net.settings.backbone == "vovnet19_slim"
    assert "backbone vovnet19_slim instead of the file's vovnet39" in net.report
    assert "decoding.score_threshold 0.2 instead of the file's 0.05" in net.report
    assert "norm group instead of the file's frozen" in net.report
    assert not [line for line in net.report if line.startswith("fpn_channels")]


def test_a_file_is_told_key_by_key(path):
    file = read_config_file(path)
    assert list_untaken(file, class_count=1, has_weights=False) == LEFT
    assert list_untaken(file, class_count=80, has_weights=True) == [*LEFT[1:4], *LEFT[5:]]
    assert list_changes({"a": {"b": True}, "c": None}, {"a": {"b": False}, "c": [1, 2.5]}) == [
        "a.b false instead of the file's true",
        "c [1,2.5] instead of the file's none",
    ]
