"""Our CenterMask2 in detectron2, and detectron2's nets in this library, where detectron2 is installed."""

import gzip
import importlib.util
import json
import os
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cellvision.errors import ConfigError, DataError
from cellvision.models.build import build_model
from cellvision.models.centermask2.config_file.reader import read_config_file
from cellvision.models.detectron2 import add_centermask_config, build_centermask, register
from cellvision.types import IGNORE, DataStats, Targets

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of detectron2's own code, here and below
    try:
        import detectron2.modeling
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
        from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_test_loader
        from detectron2.data.datasets import register_coco_instances
        from detectron2.engine import DefaultPredictor
        from detectron2.evaluation import COCOEvaluator, inference_on_dataset
        from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNNWithTTA
        from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
        from detectron2.utils.events import EventStorage

        REASON = ""
    except ImportError as error:
        REASON = f"detectron2 cannot be imported: {error}"

SHARED = Path(os.environ.get("CELLVISION_SHARED", Path(__file__).resolve().parents[3] / "shared"))
GOLDEN = SHARED / "golden" / "centermask2"
needs_detectron2 = pytest.mark.skipif(bool(REASON), reason=REASON)
pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES = ("background", "live", "dead")
OURS, THEIRS = "CellvisionCenterMask", "GeneralizedRCNN"
LOSSES = {"loss_mask", "loss_maskiou", "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}

CENTERMASK = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  MASK_ON: True
  MASKIOU_ON: True
  PIXEL_STD: [57.0, 57.0, 57.0]
  DEVICE: cpu
  BACKBONE: {NAME: build_fcos_vovnet_fpn_backbone, FREEZE_AT: 0}
  VOVNET: {CONV_BODY: "V-19-slim-dw-eSE", NORM: BN, OUT_FEATURES: ["stage3", "stage4", "stage5"]}
  FPN: {IN_FEATURES: ["stage3", "stage4", "stage5"], OUT_CHANNELS: 32}
  PROPOSAL_GENERATOR: {NAME: "FCOS"}
  FCOS: {NUM_CLASSES: 2, NUM_CLS_CONVS: 1, NUM_BOX_CONVS: 1, PRIOR_PROB: 0.3, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {NAME: "CenterROIHeads", IN_FEATURES: ["p3", "p4", "p5"], NUM_CLASSES: 2}
  ROI_MASK_HEAD: {NAME: "SpatialAttentionMaskHead", ASSIGN_CRITERION: "ratio", NUM_CONV: 1, CONV_DIM: 32}
  ROI_MASKIOU_HEAD: {NUM_CONV: 1, CONV_DIM: 32}
INPUT:
  MIN_SIZE_TEST: 96
  MIN_SIZE_TRAIN: (96, 112)
TEST: {DETECTIONS_PER_IMAGE: 50}
VERSION: 2
"""
MASK_RCNN = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN, OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], POST_NMS_TOPK_TRAIN: 50, POST_NMS_TOPK_TEST: 50}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"], SCORE_THRESH_TEST: 0.0}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 1, CONV_DIM: 16}
VERSION: 2
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "centermask.yaml").write_text(CENTERMASK)
    (tmp_path / "mask_rcnn.yaml").write_text(MASK_RCNN)
    return tmp_path


def make_cfg(path, *options, architecture=THEIRS):
    register()
    cfg = get_cfg()
    add_centermask_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", architecture, *options])
    return cfg


def make_centermask(files, *options, architecture=OURS):
    torch.manual_seed(0)
    model = detectron2.modeling.build_model(make_cfg(files / "centermask.yaml", *options, architecture=architecture))
    model.train()
    with torch.no_grad():  # so that batch statistics are not those of no data
        model.backbone(torch.randn(4, 3, 64, 64))
    return model.eval()


def make_lite(body, classes):
    """Options that turn the small config into a published light one."""
    lite = dict.fromkeys(("FPN.OUT_CHANNELS", "ROI_MASK_HEAD.CONV_DIM", "ROI_MASKIOU_HEAD.CONV_DIM"), 128)
    counts = ("FCOS.NUM_CLS_CONVS", "FCOS.NUM_BOX_CONVS", "ROI_MASK_HEAD.NUM_CONV", "ROI_MASKIOU_HEAD.NUM_CONV")
    lite |= dict.fromkeys(counts, 2) | dict.fromkeys(("FCOS.NUM_CLASSES", "ROI_HEADS.NUM_CLASSES"), classes)
    lite |= {"VOVNET.CONV_BODY": body, "VOVNET.NORM": "FrozenBN"}
    return [part for key, value in lite.items() for part in (f"MODEL.{key}", value)]


def make_golden(cfg, gold):
    """The net with the weights that the recorded answers belong to."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "golden_weights.py")
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    model, meta = detectron2.modeling.build_model(cfg), json.loads(str(gold["meta"]))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    values = rule.fill(shapes, meta["seed"], meta["cls_bias"], meta["input_gain"])
    model.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
    return model


def read_polygons(gold):
    cells = [[] for _ in gold["gt.boxes"]]
    ends = np.cumsum(gold["gt.polygon_length"])
    for ring, cell in zip(np.split(gold["gt.polygon_xy"], ends[:-1]), gold["gt.polygon_cell"], strict=True):
        cells[cell].append(ring.astype(np.float64))
    return PolygonMasks(cells)


def make_input(height, width, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)}


def make_truth(height, width, *, masks):
    """Two rectangles of 12 px and a small one, whose masks are the same in either form."""
    boxes = torch.tensor([[4.0, 6.0, 16.0, 18.0], [30.0, 20.0, 42.0, 32.0], [20.0, 40.0, 25.0, 46.0]])
    corners = [(x0, y0, x1, y0, x1, y1, x0, y1) for x0, y0, x1, y1 in boxes.tolist()]
    polygons = PolygonMasks([[np.array(one, dtype=np.float64)] for one in corners])
    bitmaps = BitMasks.from_polygon_masks(polygons, height, width)
    truth = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1, 1]))
    truth.gt_masks = {"polygons": polygons, "bitmaps": bitmaps}[masks]
    return truth


def have_same(first, second):
    fields = first.get_fields()
    return fields.keys() == second.get_fields().keys() and all(
        torch.equal(getattr(value, "tensor", value), getattr(second.get(name), "tensor", second.get(name)))
        for name, value in fields.items()
    )


def test_without_detectron2_it_says_what_to_install(monkeypatch):
    for name in ("detectron2", "detectron2.modeling"):
        monkeypatch.setitem(sys.modules, name, None)
    need = r"facebookresearch/detectron2\), e\.g\. pip install --no-build-isolation <checkout>"
    for ask, purpose in (
        (register, r"register\(\)"),
        (lambda: build_centermask(backbone="vovnet39", levels=(3, 4, 5)), "build_centermask"),
        (
            lambda: build_model(name="detectron2", in_channels=1, classes=("background", "cell"), config_file="a.yaml"),
            "model=detectron2",
        ),
    ):
        with pytest.raises(ConfigError, match=f"need detectron2 for {purpose}; try: install .*{need}"):
            ask()


@needs_detectron2
class TestOurNetThere:
    @pytest.mark.shared
    @pytest.mark.skipif(
        not (SHARED / "design/centermask2-keys").is_dir(), reason="no shared folder beside the checkout"
    )
    @pytest.mark.parametrize("architecture", [OURS, THEIRS])
    @pytest.mark.parametrize(("name", "body"), [("lite-V-19-slim", "V-19-slim-eSE"), ("lite-V-39", "V-39-eSE")])
    def test_names_and_shapes_of_weights_are_the_published_ones(self, files, architecture, name, body):
        with gzip.open(SHARED / f"design/centermask2-keys/{name}.json.gz") as file:
            record = json.load(file)
        options = make_lite(body, record["num_classes"])
        model = detectron2.modeling.build_model(
            make_cfg(files / "centermask.yaml", *options, architecture=architecture)
        )
        found = {key: list(value.shape) for key, value in model.state_dict().items()}
        assert found == {key: one["shape"] if isinstance(one, dict) else one for key, one in record["keys"].items()}

    @pytest.mark.shared
    @pytest.mark.skipif(not GOLDEN.is_dir(), reason="no shared folder beside the checkout")
    @pytest.mark.parametrize("architecture", [OURS, THEIRS])
    def test_answers_and_losses_are_the_published_ones(self, files, architecture):
        """Oracle: recorded results of the official code, with detectron2's own post-processing."""
        gold = np.load(GOLDEN / "lite-V-19-slim.npz")
        options = [*make_lite("V-19-slim-eSE", 2), "MODEL.PIXEL_STD", [1.0] * 3]
        options += ["MODEL.FCOS.PRIOR_PROB", 0.01, "MODEL.FCOS.POST_NMS_TOPK_TEST", 100]
        model = make_golden(make_cfg(files / "centermask.yaml", *options, architecture=architecture), gold)
        image, (height, width) = torch.from_numpy(gold["image"]), gold["eval.final.output_size"].tolist()
        with torch.no_grad():
            found = model.eval()([{"image": image, "height": height, "width": width}])[0]["instances"]
        packed = np.unpackbits(gold["eval.final.masks_packed"], axis=1, count=height * width)
        distance = np.abs(found.pred_boxes.tensor.numpy()[:, None] - gold["eval.final.boxes"]).max(2)
        distance += 1e3 * (found.pred_classes.numpy()[:, None] != gold["eval.final.classes"])
        index = distance.argmin(1)
        assert sorted(index) == list(range(len(gold["eval.final.boxes"])))
        assert distance.min(1).max() < 5e-3
        for name in ("scores", "mask_scores"):
            np.testing.assert_allclose(found.get(name), gold[f"eval.final.{name}"][index], atol=2e-5)
        assert (found.pred_masks.numpy() != packed.reshape(-1, height, width)[index]).sum() <= 1e-4 * packed.sum() + 3
        truth = Instances((256, 320), gt_boxes=Boxes(torch.from_numpy(gold["gt.boxes"])))
        truth.gt_classes, truth.gt_masks = torch.from_numpy(gold["gt.classes"]).long(), read_polygons(gold)
        for name, loss in model.train()([{"image": image, "instances": truth}]).items():
            assert loss.item() == pytest.approx(float(gold[f"train.{name}"]), rel=1e-3 if "iou" in name else 1e-4)

    def test_registering_twice_and_beside_others(self, monkeypatch):
        register()
        before = dict(META_ARCH_REGISTRY)
        register()
        assert dict(META_ARCH_REGISTRY) == before
        theirs = type("CenterROIHeads", (), {})
        monkeypatch.setitem(ROI_HEADS_REGISTRY._obj_map, "CenterROIHeads", theirs)
        register()
        assert ROI_HEADS_REGISTRY.get("CenterROIHeads") is theirs

    def test_defaults_of_detectron2_are_left_alone(self):
        before = get_cfg().dump()
        cfg = get_cfg()
        add_centermask_config(cfg)
        cfg.MODEL.FCOS.NMS_TH = 0.5
        add_centermask_config(cfg)
        assert (cfg.MODEL.FCOS.NMS_TH, cfg.MODEL.FCOS.TOP_LEVELS) == (0.5, 2)
        assert get_cfg().dump() == before

    def test_a_file_says_the_same_to_both_readers(self, files):
        """Oracle: detectron2's and yacs' reading of the file, with their defaults."""
        from cellvision.models.detectron2.register import read_cfg

        assert read_config_file(files / "centermask.yaml").net == read_cfg(make_cfg(files / "centermask.yaml"))

    @pytest.mark.parametrize("architecture", [OURS, THEIRS])
    def test_results_keep_the_contract(self, files, architecture):
        model = make_centermask(files, architecture=architecture)
        assert (model.input_format, model.device.type) == ("BGR", "cpu")
        found = model([{**make_input(60, 80), "height": 120, "width": 100}])[0]["instances"]
        assert found.image_size == (120, 100)
        count = len(found)
        assert 0 < count <= 20
        names = {"pred_boxes", "scores", "pred_classes", "pred_masks", "locations", "mask_scores"}
        assert set(found.get_fields()) == names
        assert (found.pred_masks.shape, found.pred_masks.dtype) == ((count, 120, 100), torch.bool)
        raw = model.inference([make_input(60, 80)], do_postprocess=False)[0]
        assert raw.image_size == (60, 80)
        assert raw.pred_masks.shape[1:] == (1, 28, 28)

    def test_nothing_found_has_all_fields_too(self, files):
        model = make_centermask(files, "MODEL.FCOS.INFERENCE_TH_TEST", 1.0)
        found = model([make_input(60, 80)])[0]["instances"]
        assert len(found) == 0
        assert found.mask_scores.shape == (0,)

    def test_without_rated_masks_their_scores_are_those_of_the_boxes(self, files):
        found = make_centermask(files, "MODEL.MASKIOU_ON", False)([make_input(60, 80)])[0]["instances"]
        assert torch.equal(found.mask_scores, found.scores)

    def test_an_image_does_not_depend_on_its_batch_unless_asked_to(self, files):
        model = make_centermask(files)
        batch = [make_input(60, 80), make_input(130, 200, seed=1)]
        alone = [model([one])[0]["instances"] for one in batch]
        together = [one["instances"] for one in model(batch)]
        assert all(have_same(*pair) for pair in zip(alone, together, strict=True))
        model.compatible = True
        padded = [one["instances"] for one in model(batch)]
        assert not have_same(alone[0], padded[0])
        theirs = make_centermask(files, architecture=THEIRS)
        theirs.load_state_dict(model.state_dict())
        assert all(have_same(one, other["instances"]) for one, other in zip(padded, theirs(batch), strict=True))

    def test_given_boxes_get_the_same_masks(self, files):
        model = make_centermask(files)
        batch = [make_input(60, 80), make_input(96, 64, seed=1)]
        found = model.inference(batch, do_postprocess=False)
        given = [Instances(o.image_size, pred_boxes=o.pred_boxes, pred_classes=o.pred_classes) for o in found]
        for one, other in zip(found, model.inference(batch, given, do_postprocess=False), strict=True):
            assert torch.equal(one.pred_masks, other.pred_masks)

    def test_test_time_augmentation_runs(self, files):
        model = make_centermask(files)
        cfg = make_cfg(files / "centermask.yaml", "TEST.AUG.MIN_SIZES", [64, 96])
        image = {**make_input(60, 80), "height": 60, "width": 80}
        with torch.no_grad():
            found = GeneralizedRCNNWithTTA(cfg, model)([image])[0]["instances"]
        assert len(found) > 0
        assert found.pred_masks.shape[1:] == (60, 80)
        assert model.roi_heads.mask_on

    @pytest.mark.parametrize("architecture", [OURS, THEIRS])
    def test_bitmaps_and_polygons_train_alike(self, files, architecture):
        model = make_centermask(files, architecture=architecture)
        losses = {}
        for masks in ("polygons", "bitmaps"):
            model.train()
            truth = make_truth(64, 64, masks=masks)
            losses[masks] = model([{**make_input(64, 64), "instances": truth}])
        assert losses["polygons"].keys() == LOSSES
        for name in LOSSES - {"loss_mask", "loss_maskiou"}:
            assert torch.equal(losses["polygons"][name], losses["bitmaps"][name])
        for name in ("loss_mask", "loss_maskiou"):  # COCO's polygon rule and ROIAlign differ by pixels at the outline
            torch.testing.assert_close(losses["polygons"][name], losses["bitmaps"][name], rtol=0.1, atol=1e-3)

    def test_bitmaps_are_cut_like_label_images(self):
        """Oracle: the other class of this library, which knows nothing of detectron2."""
        from cellvision.models.centermask2.ground_truth.label_masks import LabelMasks
        from cellvision.models.detectron2.convert import BitmapMasks

        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(1, 21).view(4, 5).repeat_interleave(13, 0).repeat_interleave(11, 1)
        labels = labels * (torch.rand(labels.shape, generator=generator) > 0.3)
        ids = torch.arange(1, 21)
        corners = torch.rand(40, 2, generator=generator) * 40 - 5
        boxes = torch.cat([corners, corners + 1 + torch.rand(40, 2, generator=generator) * 25], dim=1)
        index = torch.randint(0, 20, (40,), generator=generator)
        ours, theirs = LabelMasks(labels, ids), BitmapMasks(labels == ids.view(-1, 1, 1))
        assert (ours.crop(boxes, index, 28) != theirs.crop(boxes, index, 28)).float().mean() < 1e-3
        assert torch.equal(ours.inside_share(boxes, index), theirs.inside_share(boxes, index))

    def test_no_cells_train_too(self, files):
        model = make_centermask(files)
        for masks in (PolygonMasks([]), BitMasks(torch.zeros(0, 64, 64))):
            model.train()
            truth = Instances((64, 64), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.long))
            truth.gt_masks = masks
            losses = model([{**make_input(64, 64), "instances": truth}])
            assert [name for name, loss in losses.items() if loss != 0] == ["loss_fcos_cls"]

    def test_proposals_can_be_drawn_while_training(self, files):
        model = make_centermask(files, "VIS_PERIOD", 1)
        model.train()
        pytest.importorskip("cv2", reason="detectron2's pictures need OpenCV")
        with EventStorage() as storage:
            model([{**make_input(64, 64), "instances": make_truth(64, 64, masks="bitmaps")}])
        assert len(storage._vis_data) == 1

    def test_lazy_config_by_settings_and_by_parts(self, files):
        settings = read_config_file(files / "centermask.yaml").net
        node = LazyCall(build_centermask)(**vars(settings), compatible=True)
        model = instantiate(node)
        assert model.compatible
        expected = make_centermask(files).state_dict()
        assert {key: value.shape for key, value in model.state_dict().items()} == {
            key: value.shape for key, value in expected.items()
        }
        from cellvision.models.detectron2 import parts

        part = LazyCall(parts.CellvisionCenterMask)(
            backbone=LazyCall(parts.build_backbone)(given=settings, in_channels=3),
            proposal_generator=LazyCall(parts.build_proposals)(given=settings),
            roi_heads=LazyCall(parts.build_roi_heads)(given=settings),
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        )
        assert not instantiate(part).compatible

    def test_unknown_setting_is_refused(self):
        with pytest.raises(ConfigError, match=r"unknown setting of CenterMask2 'backbon'.*try: 'backbone'"):
            build_centermask(backbon="vovnet39")

    def test_predictor_loader_evaluator_and_three_steps(self, files):
        """What detectron2's own tools do with a net: mapper, training, checkpoint, predictor, COCO evaluation."""
        name = write_coco(files)
        cfg = make_cfg(
            files / "centermask.yaml", "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,),
            "INPUT.MASK_FORMAT", "bitmask", "DATALOADER.NUM_WORKERS", 0, architecture=OURS,
        )  # fmt: skip
        try:
            model = make_centermask(files).train()
            mapper = DatasetMapper(cfg, is_train=True)
            batch = [mapper(one) for one in DatasetCatalog.get(name)]
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            totals = []
            with EventStorage():
                for _ in range(3):
                    total = sum(model(batch).values())
                    totals.append(total.item())
                    optimizer.zero_grad()
                    total.backward()
                    optimizer.step()
            assert np.isfinite(totals).all()
            DetectionCheckpointer(model, str(files)).save("model")
            cfg.MODEL.WEIGHTS = str(files / "model.pth")
            predictor = DefaultPredictor(cfg)
            assert have_same_weights(predictor.model, model)
            image = np.asarray(Image.open(files / "0.png").convert("RGB"))[:, :, ::-1]
            assert predictor(image)["instances"].image_size == (64, 80)
            evaluator = COCOEvaluator(name, output_dir=str(files / "scores"))
            scores = inference_on_dataset(model.eval(), build_detection_test_loader(cfg, name), evaluator)
            assert {"bbox", "segm"} <= scores.keys()
            assert all(0 <= scores[task]["AP50"] <= 100 for task in ("bbox", "segm"))
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def have_same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def write_coco(folder):
    """Two images with two cells each; returns the name under which detectron2 knows them."""
    images, cells = [], []
    for index in range(2):
        picture = np.zeros((64, 80, 3), dtype=np.uint8)
        for place, (x, y) in enumerate([(8, 8), (40, 30)]):
            picture[y : y + 16, x : x + 16] = 200
            ring = [x, y, x + 16, y, x + 16, y + 16, x, y + 16]
            cells.append({"id": len(cells) + 1, "image_id": index, "category_id": place + 1, "segmentation": [ring]})
            cells[-1] |= {"bbox": [x, y, 16, 16], "area": 256, "iscrowd": 0}
        Image.fromarray(picture).save(folder / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 64, "width": 80})
    categories = [{"id": 1, "name": "live"}, {"id": 2, "name": "dead"}]
    content = {"info": {}, "images": images, "annotations": cells, "categories": categories}
    (folder / "cells.json").write_text(json.dumps(content))
    register_coco_instances(folder.name, {}, str(folder / "cells.json"), str(folder))
    return folder.name


def make_net(files, file="mask_rcnn.yaml", **arguments):
    torch.manual_seed(0)
    net = build_model(**{"name": "detectron2", "in_channels": 3, "classes": CLASSES} | {
        "config_file": str(files / file), **arguments
    })  # fmt: skip
    net.set_statistics(
        DataStats(offset=(10.0,) * net.spec.in_channels, scale=(200.0,) * net.spec.in_channels, class_pixels=(9, 1, 1))
    )
    return net


def make_batch(channels=3):
    images = torch.rand(2, channels, 70, 90, generator=torch.Generator().manual_seed(0)) * 200
    labels = torch.zeros(2, 70, 90, dtype=torch.int32)
    labels[0, 5:20, 5:25], labels[0, 30:50, 30:45], labels[0, 60:70, 80:90] = 1, 2, 3
    labels[1, 10:30, 40:60] = 2  # label 1 lost its last pixel to a crop
    classes = (torch.tensor([1, 2, IGNORE]), torch.tensor([1, 2]))
    targets = Targets(
        class_map=(labels > 0).long(), distance=torch.zeros(labels.shape), label_image=labels, cell_classes=classes
    )
    return images, targets


@needs_detectron2
class TestTheirNetHere:
    @pytest.mark.parametrize("file", ["mask_rcnn.yaml", "centermask.yaml"])
    def test_results_of_an_instance_net(self, files, file):
        net = make_net(files, file).eval()
        images, targets = make_batch()
        with torch.no_grad():
            found = net(images)
        assert tuple(found) == net.spec.outputs
        assert ("mask_scores" in found) == (file == "centermask.yaml")
        count = found["scores"].shape[1]
        assert count > 0
        assert found["boxes"].shape == (2, count, 4)
        assert found["class_scores"].shape == (2, count, 2)
        assert found["masks"].shape == (2, count, 28, 28)
        valid = found["valid"]
        assert set(found["classes"][valid].tolist()) <= {1, 2}
        low, high = found["boxes"][valid].split(2, dim=1)
        assert (low >= 0).all()
        assert (high <= torch.tensor([90, 70])).all()
        assert (high > low).all()
        assert (found["scores"].diff(dim=1) <= 0).all()
        assert 0 <= found["masks"].min() <= found["masks"].max() <= 1
        chosen = found["class_scores"].gather(2, (found["classes"] - 1).clamp_min(0).unsqueeze(2)).squeeze(2)
        assert torch.equal(chosen[valid], found["scores"][valid])
        assert all(value.isfinite() for value in net.losses(images, targets).values())

    def test_validation_runs_are_repeatable_and_leave_no_trace(self, files):
        net = make_net(files).eval()
        images, targets = make_batch()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        noise = torch.get_rng_state()
        with torch.no_grad():
            logits = net.logits(images)
            assert net.losses_from(logits, targets) == net.losses(images, targets)
            decoded, whole = net.decode(logits), net(images)
        assert all(torch.equal(decoded[name], whole[name]) for name in whole)
        assert torch.equal(torch.get_rng_state(), noise)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert not any(module.training for module in net.modules())

    def test_a_step_lowers_the_loss(self, files):
        net = make_net(files)
        images, targets = make_batch()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        values = []
        for _ in range(8):
            total = sum(net.train().losses(images, targets).values())
            values.append(total.item())
            optimizer.zero_grad()
            total.backward()
            assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
            optimizer.step()
        assert min(values[-3:]) < values[0]

    def test_truth_leaves_out_ignored_and_lost_cells(self):
        from cellvision.models.detectron2.convert import build_truths

        _, targets = make_batch()
        first, second = build_truths(targets, (70, 90))
        assert first.gt_boxes.tensor.tolist() == [[5, 5, 25, 20], [30, 30, 45, 50]]
        assert first.gt_classes.tolist() == [0, 1]
        assert torch.equal(first.gt_masks.tensor[1], targets.label_image[0] == 2)
        assert (second.gt_boxes.tensor.tolist(), second.gt_classes.tolist()) == ([[40, 10, 60, 30]], [1])

    def test_padding_is_cut_off(self, files):
        from dataclasses import replace

        net = make_net(files).eval()
        images, targets = make_batch()
        small = replace(targets, label_image=targets.label_image[:1, :60, :70], cell_classes=targets.cell_classes[:1])
        wide = replace(targets, label_image=targets.label_image[:1], cell_classes=targets.cell_classes[:1])
        expected = net.losses(images[:1, :, :60, :70], small)
        images[:, :, 60:], images[:, :, :, 70:] = 255, 255
        assert net.losses(images[:1], replace(wide, sizes=((60, 70),))) == expected

    def test_the_record_rebuilds_the_net_without_the_file(self, files):
        net = make_net(
            files, overrides={"MODEL": {"ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 64}}, "MODEL.RPN.NMS_THRESH": 0.6}
        )
        assert net.model.roi_heads.batch_size_per_image == 64
        assert net.model.proposal_generator.nms_thresh == 0.6
        (files / "mask_rcnn.yaml").unlink()
        copy = build_model(**json.loads(json.dumps(net.config)))
        copy.load_state_dict(net.state_dict())
        assert (copy.config, copy.spec) == (net.config, net.spec)
        images, _ = make_batch()
        with torch.no_grad():
            first, second = net.eval()(images), copy.eval()(images)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_images_arrive_in_the_order_and_range_of_detectron2(self, files):
        images = torch.tensor([10.0, 60.0, 110.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
        shown = make_net(files).logits(images)["images"][0, :, 0, 0]
        torch.testing.assert_close(shown, torch.tensor([127.5, 63.75, 0.0]))
        shown = make_net(files, overrides={"INPUT": {"FORMAT": "RGB"}}).logits(images)["images"][0, :, 0, 0]
        torch.testing.assert_close(shown, torch.tensor([0.0, 63.75, 127.5]))
        shown = make_net(files, in_channels=1).logits(images[:, 1:2])["images"][0, :, 0, 0]
        torch.testing.assert_close(shown, torch.full((3,), 63.75))

    def test_two_channels_with_as_many_means(self, files):
        overrides = {"MODEL": {"PIXEL_MEAN": [0.0, 0.0], "PIXEL_STD": [50.0, 50.0]}}
        net = make_net(files, in_channels=2, overrides=overrides).eval()
        images, _ = make_batch(2)
        with torch.no_grad():
            assert net(images)["scores"].shape[1] > 0
            features = net.features(images)
        assert list(features) == ["p2", "p3", "p4", "p5", "p6"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"in_channels": 2},
                "model.in_channels=2 with 3 numbers in MODEL.PIXEL_MEAN; need as many channels, or one",
            ),
            ({"in_channels": 0}, "model.in_channels=0; need a whole number"),
            ({"classes": ("cell",)}, "need two or more different names"),
            ({"kind": "semantic"}, "unknown model.kind 'semantic'; need one of: instance"),
            ({"config_file": None}, "neither of model.config_file and model.content"),
            ({"config_file": "absent.yaml"}, "model.config_file=absent.yaml; need a file, or a name in"),
            ({"overrides": {"MODEL": {"NONE": 1}}}, "MODEL.NONE.*need keys and values that detectron2 knows"),
            ({"overrides": {"MODEL.MASK_ON": "often"}}, "need keys and values that detectron2 knows"),
            ({"overrides": {"MODEL.MASK_ON": False}}, "MODEL.MASK_ON=false; need a net with masks"),
            (
                {"overrides": {"MODEL.META_ARCHITECTURE": "RetinaNet"}},
                "META_ARCHITECTURE=RetinaNet; need GeneralizedRCNN",
            ),
            ({"overrides": {"MODEL.META_ARCHITECTURE": "PanopticFPN"}}, "META_ARCHITECTURE=PanopticFPN; need"),
            ({"overrides": {"MODEL.META_ARCHITECTURE": "Mine"}}, "META_ARCHITECTURE=Mine; need"),
            ({"overrides": {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"}}, "need one that looks at images"),
            ({"overrides": {"MODEL.RPN.IN_FEATURES": ["p9"]}}, "cannot build this config .*p9"),
            ({"overrides": {"MODEL.RESNETS.NORM": "FrozenBN"}}, "random weights with frozen normalisation"),
            ({"pretrained": "no"}, "model.pretrained='no'; need true or false"),
            ({"pretrained": True}, "an empty MODEL.WEIGHTS; need weights for model.pretrained=true"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, files, arguments, message):
        with pytest.raises(ConfigError, match=message):
            make_net(files, **arguments)

    def test_published_files_are_read_as_arrays_only(self, files):
        net = make_net(files)
        weights = {key: value.numpy() + 1 for key, value in net.model.state_dict().items() if value.ndim}
        good, bad = files / "good.pkl", files / "bad.pkl"
        good.write_bytes(pickle.dumps({"model": weights, "__author__": "me"}))
        loaded = make_net(files, overrides={"MODEL.WEIGHTS": str(good)}, pretrained=True)
        for key, value in loaded.model.state_dict().items():
            assert key not in weights or torch.equal(value, torch.from_numpy(weights[key]))
        bad.write_bytes(pickle.dumps({"model": {"a": Path("x")}}))
        with pytest.raises(DataError, match=r"it asks for pathlib.*need tensors or arrays of numbers and plain data"):
            make_net(files, overrides={"MODEL.WEIGHTS": str(bad)}, pretrained=True)

    def test_a_name_in_the_model_zoo(self):
        from cellvision.models.detectron2.settings import build_cfg

        cfg = build_cfg("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", None, None, class_count=3)
        assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.DEVICE) == (50, 3, "cpu")

    def test_a_whole_config_is_plain_data(self, files):
        content = make_net(files).config["content"]
        assert yaml.safe_load(yaml.safe_dump(content)) == content
        assert CfgNode(content).MODEL.ROI_HEADS.NUM_CLASSES == 2
