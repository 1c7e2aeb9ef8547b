"""Config files written here from the published tables; detectron2's own reader is the oracle where it is installed."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from cellvision.errors import ConfigError
from cellvision.models.centermask2.config_file.keys import (
    CENTERMASK_DEFAULTS,
    DETECTRON2_DEFAULTS,
    FIXED,
    WITHOUT_EFFECT,
)
from cellvision.models.centermask2.config_file.reader import read_config_file, read_config_tree
from cellvision.models.centermask2.config_file.settings import (
    NET_KEYS,
    TRAINING_KEYS,
    CenterMaskSettings,
    TrainingSettings,
)

BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  MASK_ON: True
  MASKIOU_ON: True
  BACKBONE: {NAME: build_fcos_vovnet_fpn_backbone, FREEZE_AT: 0}
  VOVNET: {OUT_FEATURES: ["stage3", "stage4", "stage5"]}
  FPN: {IN_FEATURES: ["stage3", "stage4", "stage5"]}
  PROPOSAL_GENERATOR: {NAME: "FCOS"}
  FCOS: {POST_NMS_TOPK_TEST: 50}
  ROI_HEADS: {NAME: "CenterROIHeads", IN_FEATURES: ["p3", "p4", "p5"]}
  ROI_MASK_HEAD:
    NAME: "SpatialAttentionMaskHead"
    ASSIGN_CRITERION: "ratio"
    NUM_CONV: 4
    POOLER_RESOLUTION: 14
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.01
  STEPS: (60000, 80000)
  MAX_ITER: 90000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
VERSION: 2
"""
LITE = """
_BASE_: "base.yaml"
MODEL:
  WEIGHTS: "vovnet39_ese.pth"
  VOVNET: {CONV_BODY: "V-39-eSE"}
  FPN: {OUT_CHANNELS: 128}
  FCOS: {NUM_CLS_CONVS: 2, NUM_BOX_CONVS: 2}
  ROI_MASK_HEAD: {NUM_CONV: 2, CONV_DIM: 128}
  ROI_MASKIOU_HEAD: {NUM_CONV: 2, CONV_DIM: 128}
SOLVER:
  STEPS: (300000, 340000)
  MAX_ITER: 360000
INPUT:
  MIN_SIZE_TRAIN: (580, 600)
  MAX_SIZE_TRAIN: 1000
  MIN_SIZE_TEST: 600
  MAX_SIZE_TEST: 1000
"""
X101 = """
_BASE_: base.yaml
MODEL:
  BACKBONE: {NAME: "build_fcos_resnet_fpn_backbone", FREEZE_AT: 2}
  PIXEL_STD: [57.375, 57.120, 58.395]
  RESNETS:
    {DEPTH: 101, NUM_GROUPS: 32, WIDTH_PER_GROUP: 8, STRIDE_IN_1X1: False, OUT_FEATURES: ["res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res3", "res4", "res5"]}
"""
LIVECELL = """
_BASE_: base.yaml
MODEL:
  PIXEL_MEAN: [128, 128, 128]
  PIXEL_STD: [11.578, 11.578, 11.578]
  VOVNET: {CONV_BODY: "V-99-eSE"}
  FCOS:
    {NUM_CLASSES: 1, PRE_NMS_TOPK_TRAIN: 2000, PRE_NMS_TOPK_TEST: 4000, POST_NMS_TOPK_TRAIN: 15000,
     POST_NMS_TOPK_TEST: 3000}
  ROI_HEADS: {NUM_CLASSES: 1, BATCH_SIZE_PER_IMAGE: 3000}
  RPN: {PRE_NMS_TOPK_TEST: 2000}
  RETINANET: {NUM_CLASSES: 1}
TEST: {DETECTIONS_PER_IMAGE: 2000}
DATASETS: {PRECOMPUTED_PROPOSAL_TOPK_TEST: 2000}
SOLVER:
  STEPS: (80000, 90000)
  MAX_ITER: 100000
  CHECKPOINT_PERIOD: 2500
  WARMUP_FACTOR: 5e-5
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)

    def write_file(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def tree():
    return yaml.safe_load(BASE)


def put(tree, key, value):
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def test_lite_v39_of_the_published_table(write):
    read = read_config_file(write(LITE))
    assert read.net == CenterMaskSettings(
        backbone="vovnet39",
        levels=(3, 4, 5),
        out_channels=128,
        freeze_at=0,
        class_convs=2,
        box_convs=2,
        post_nms=50,
        roi_criterion="ratio",
        mask_convs=2,
        mask_attention=True,
        mask_iou=True,
        maskiou_convs=2,
    )
    assert read.training == TrainingSettings(
        weights="vovnet39_ese.pth",
        lr=0.01,
        iterations=360000,
        decay_steps=(300000, 340000),
        short_sides=(580, 600),
        max_side=1000,
        test_short_side=600,
        test_max_side=1000,
    )
    assert set(read.ignored) == {"MODEL.VOVNET.OUT_FEATURES", "DATASETS.TRAIN", "DATASETS.TEST", "VERSION"}


def test_livecell_setup_of_the_published_table(write):
    read = read_config_file(write(LIVECELL))
    net = read.net
    assert (net.backbone, net.num_classes, net.roi_per_image) == ("vovnet99", 1, 3000)
    assert (net.pre_nms_train, net.pre_nms, net.post_nms_train, net.post_nms) == (2000, 4000, 15000, 3000)
    assert (net.pixel_mean, net.pixel_std) == ((128.0, 128.0, 128.0), (11.578, 11.578, 11.578))
    assert (read.training.warmup_factor, read.training.checkpoint_every) == (5e-5, 2500)
    without_effect = {
        "TEST.DETECTIONS_PER_IMAGE", "MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RETINANET.NUM_CLASSES",
        "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    }  # fmt: skip
    assert without_effect <= set(read.ignored)
    assert "POST_NMS_TOPK_TEST" in read.ignored["TEST.DETECTIONS_PER_IMAGE"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("resnext101_32x8d", "frozen", False)),
        ({"DEPTH": 50, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "STRIDE_IN_1X1": True}, ("resnet50", "frozen", True)),
        ({"DEPTH": 18, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "RES2_OUT_CHANNELS": 64}, ("resnet18", "frozen", False)),
        ({"NORM": "SyncBN"}, ("resnext101_32x8d", "sync", False)),
    ],
)
def test_resnets(write, changes, expected):
    whole = yaml.safe_load(X101)
    whole["MODEL"]["RESNETS"] |= changes
    read = read_config_file(write(yaml.safe_dump(whole)))
    assert (read.net.backbone, read.net.norm, read.net.stride_in_1x1) == expected
    assert read.net.freeze_at == 2
    assert read.net.levels == (3, 4, 5)
    assert read.ignored["MODEL.VOVNET.OUT_FEATURES"]


def test_mobilenet_is_chosen_by_its_builder(tree):
    put(tree, "MODEL.BACKBONE.NAME", "build_fcos_mobilenetv2_fpn_backbone")
    put(tree, "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
    put(tree, "MODEL.MOBILENET", True)
    read = read_config_tree(tree)
    assert (read.net.backbone, read.net.norm, read.net.deformable) == ("mobilenetv2", "frozen", (False,) * 4)
    assert read.ignored["MODEL.MOBILENET"] == "MODEL.BACKBONE.NAME decides"


def test_deformable_stages(tree):
    put(tree, "MODEL.VOVNET.STAGE_WITH_DCN", "(False, True, True, True)")
    put(tree, "MODEL.VOVNET.WITH_MODULATED_DCN", True)
    net = read_config_tree(tree).net
    assert (net.deformable, net.deformable_modulated) == ((False, True, True, True), True)


def test_nothing_is_frozen_below_0(tree):
    put(tree, "MODEL.BACKBONE.FREEZE_AT", -1)
    assert read_config_tree(tree).net.freeze_at == 0


def test_a_finer_level_for_small_cells(tree):
    put(tree, "MODEL.FPN.IN_FEATURES", ["stage2", "stage3", "stage4", "stage5"])
    put(tree, "MODEL.FCOS.TOP_LEVELS", 1)
    put(tree, "MODEL.FCOS.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"])
    put(tree, "MODEL.FCOS.FPN_STRIDES", [4, 8, 16, 32, 64])
    put(tree, "MODEL.FCOS.SIZES_OF_INTEREST", [16, 32, 64.5, 128])
    put(tree, "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4"])
    net = read_config_tree(tree).net
    assert (net.levels, net.top_levels, net.roi_levels) == ((2, 3, 4, 5), 1, (2, 3, 4))
    assert net.sizes_of_interest == (16.0, 32.0, 64.5, 128.0)


def test_bases_are_relative_to_the_file_that_names_them(write, tmp_path):
    write('_BASE_: "../base.yaml"\nMODEL: {FCOS: {NMS_TH: 0.5, PRIOR_PROB: 0.02}}', "sub/middle.yaml")
    write("MODEL: {FCOS: {NMS_TH: 0.4}}", "other.yaml")
    path = write(f'_BASE_: ["sub/middle.yaml", "{tmp_path}/other.yaml"]\nMODEL: {{FCOS: {{POS_RADIUS: 2}}}}')
    net = read_config_file(path).net
    assert (net.nms_iou, net.prior, net.radius, net.post_nms) == (0.4, 0.02, 2.0, 50)


def test_every_setting_has_a_key_and_every_default_agrees():
    """A whole config of defaults gives the default settings, but for what has no usable default."""
    chosen = {"backbone", "levels", "norm", "deformable", "deformable_modulated"}
    read_apart = {"roi_levels", "roi_iou", "head_norm", "mask_attention"}
    assert {f.name for f in dataclasses.fields(CenterMaskSettings)} == chosen | read_apart | set(NET_KEYS)
    assert {f.name for f in dataclasses.fields(TrainingSettings)} == set(TRAINING_KEYS)
    defaults = DETECTRON2_DEFAULTS | CENTERMASK_DEFAULTS
    for kind, keys in ((CenterMaskSettings, NET_KEYS), (TrainingSettings, TRAINING_KEYS)):
        for one in dataclasses.fields(kind):
            if one.name in keys and one.name != "mask_convs":
                assert one.default == defaults[keys[one.name]], one.name
    assert set(FIXED) <= set(defaults)
    assert not {key for key in WITHOUT_EFFECT if key in DETECTRON2_DEFAULTS}


REFUSED = [
    ("MODEL.FCOS.USE_DEFORMABLE", True, "MODEL.FCOS.USE_DEFORMABLE=true"),
    ("MODEL.MASK_ON", False, "MODEL.MASK_ON=false"),
    ("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.META_ARCHITECTURE=PanopticFPN"),
    ("MODEL.META_ARCHITECTURE", "PanopticFPN", "GeneralizedRCNN or CellvisionCenterMask"),
    ("MODEL.KEYPOINT_ON", True, "MODEL.KEYPOINT_ON=true"),
    ("MODEL.BACKBONE.NAME", "build_vovnet_backbone", "MODEL.BACKBONE.NAME=build_vovnet_backbone"),
    ("MODEL.FPN.NORM", "GN", "MODEL.FPN.NORM=GN; need MODEL.FPN.NORM: ''"),
    ("MODEL.VOVNET.NORM", "LN", "MODEL.VOVNET.NORM=LN"),
    ("MODEL.VOVNET.CONV_BODY", "V-27", "MODEL.VOVNET.CONV_BODY=V-27"),
    ("MODEL.FCOS.LOC_LOSS_TYPE", "l1", "MODEL.FCOS.LOC_LOSS_TYPE=l1"),
    ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "CLS_AGNOSTIC_MASK=true"),
    ("MODEL.FCOS.NUM_CLASES", 1, "'MODEL.FCOS.NUM_CLASES'.*try: 'MODEL.FCOS.NUM_CLASSES'"),
    ("MODEL.SOLO", 1, "MODEL.SOLO"),
    ("MODEL.FCOS.NUM_CLASSES", 3, "MODEL.FCOS.NUM_CLASSES=3, MODEL.ROI_HEADS.NUM_CLASSES=80; need the same number"),
    ("MODEL.FCOS.NUM_CLASSES", "many", "MODEL.FCOS.NUM_CLASSES='many'; need a value of type int"),
    ("MODEL.FCOS.NMS_TH", True, "MODEL.FCOS.NMS_TH=True; need a value of type float"),
    ("MODEL.PIXEL_MEAN", ["a"], "MODEL.PIXEL_MEAN=.*need a list of float"),
    ("MODEL.FPN.IN_FEATURES", 3, "need a list of str"),
    ("MODEL.FPN.OUT_CHANNELS", 128, "need the same number of channels in each"),
    ("MODEL.FPN.IN_FEATURES", ["stage3", "stage5"], "need levels without a gap"),
    ("MODEL.FPN.IN_FEATURES", [], r"MODEL.FPN.IN_FEATURES=\[\]"),
    ("MODEL.FCOS.TOP_LEVELS", 1, r"MODEL.FCOS.IN_FEATURES=\[p3, p4, p5, p6, p7\]; need \[p3, p4, p5, p6\]"),
    ("MODEL.FCOS.FPN_STRIDES", [4, 8, 16, 32, 64], r"FPN_STRIDES=.*need \[8, 16, 32, 64, 128\]"),
    ("MODEL.FCOS.SIZES_OF_INTEREST", [64], "SIZES_OF_INTEREST=.*need 4 sizes"),
    ("MODEL.ROI_HEADS.IN_FEATURES", ["p2"], "need some of p3..p7"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.3, 0.7], "need one threshold"),
    ("MODEL.ROI_MASK_HEAD.NUM_CONV", 0, "MODEL.ROI_MASK_HEAD.NUM_CONV=0; need one or more"),
    ("MODEL.PIXEL_STD", [0, 1, 1], "need a number > 0 per channel"),
    ("MODEL.VOVNET.STAGE_WITH_DCN", [True], r"STAGE_WITH_DCN=\[true\]; need .*\[false, true, true, true\]"),
    ("MODEL.VOVNET.STAGE_WITH_DCN", [False, True, True, True], "WITH_MODULATED_DCN=false; need true"),
    ("VERSION", 1, "VERSION=1; need version 2"),
    ("MODEL", 3, "MODEL"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_what_cannot_be_honoured_is_refused(tree, key, value, message):
    put(tree, key, value)
    with pytest.raises(ConfigError, match=message):
        read_config_tree(tree)


def test_resnet_faults(tree):
    put(tree, "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone")
    put(tree, "MODEL.RESNETS.DEPTH", 77)
    with pytest.raises(ConfigError, match="WIDTH_PER_GROUP=77x1x64; need depth x groups x width of 18x1x64, "):
        read_config_tree(tree)
    put(tree, "MODEL.RESNETS.DEPTH", 18)
    with pytest.raises(ConfigError, match="RES2_OUT_CHANNELS=256; need 64"):
        read_config_tree(tree)
    put(tree, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    put(tree, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True])
    with pytest.raises(ConfigError, match=r"MODEL\.RESNETS\.DEFORM_ON_PER_STAGE"):
        read_config_tree(tree)
    put(tree, "MODEL.MOBILENET", True)
    with pytest.raises(ConfigError, match=r"MODEL\.MOBILENET=true"):
        read_config_tree(tree)


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        read_config_tree({})
    for key in ("MODEL.MASK_ON", "MODEL.BACKBONE.NAME", "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.ROI_HEADS.NAME"):
        assert f"{key}=" in str(caught.value)


def test_other_unknown_keys_are_named_too(tree):
    put(tree, "MODEL.A", 1)
    put(tree, "MODEL.B", 1)
    with pytest.raises(ConfigError, match=r"also unknown: MODEL\.B"):
        read_config_tree(tree)


def test_a_head_that_is_off_may_say_anything(tree):
    put(tree, "MODEL.MASKIOU_ON", False)
    put(tree, "MODEL.ROI_MASKIOU_HEAD.CONV_DIM", 5)
    put(tree, "MODEL.ROI_MASKIOU_HEAD.NAME", "Other")
    read = read_config_tree(tree)
    assert not read.net.mask_iou
    assert read.ignored["MODEL.ROI_MASKIOU_HEAD.NAME"] == "MODEL.MASKIOU_ON is off"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "need sections such as MODEL"),
        ("a: [", "need YAML of plain values"),
        ("a: !!python/object/apply:os.getcwd []", "need YAML of plain values"),
        ('_BASE_: "https://example.org/a.yaml"', "need one or more files on this machine"),
        ("_BASE_: 3", "need one or more files on this machine"),
        ('_BASE_: "absent.yaml"', "absent.yaml does not exist; need a YAML file"),
        ('_BASE_: "config.yaml"', "goes in a circle"),
    ],
)
def test_files_that_cannot_be_read(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config_file(write(text))


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"no/such\.yaml does not exist"):
        read_config_file(Path("no/such.yaml"))
