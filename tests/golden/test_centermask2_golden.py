"""The net against the answers of the published code for the same weights, image and truth.

The vectors lie beside the checkout (shared/golden/centermask2); how weights follow from their names is written down
there and done again here.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.fcos.branch import Fcos
from cellvision.models.centermask2.fcos.head import FcosHead
from cellvision.models.centermask2.fcos.targets import assign_targets
from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.ground_truth.polygon_masks import PolygonMasks
from cellvision.models.centermask2.options import FcosAssigning, FcosDecoding, FcosLosses, MaskLosses, RoiSampling
from cellvision.models.centermask2.roi.heads import CenterRoiHeads, compute_inside_shares, crop_masks
from cellvision.models.centermask2.roi.mask_head import MaskHead, choose_class
from cellvision.models.centermask2.roi.maskiou_head import MaskIouHead, compute_mask_ious
from cellvision.models.centermask2.roi.pool import RoiPool, flatten_boxes
from cellvision.models.centermask2.roi.sampling import sample_regions
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.masks import crop_mask

SHARED = Path(os.environ.get("CELLVISION_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FILE = SHARED / "golden" / "centermask2" / "lite-V-19-slim.npz"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not FILE.is_file(), reason="the golden vectors are not beside the checkout"),
]

GAINS = {
    "ese.fc.": 0.4, "_1_concat/conv": 1.7, "_concat/conv": 0.7, "fpn_lateral": 0.5, "fpn_output": 0.6,
    "top_block": 0.8, "cls_logits": 0.8, "bbox_pred": 0.5, "ctrness": 1.0, "mask_head.predictor": 2.0,
    "maskiou_head.maskiou.": 0.3,
}  # fmt: skip
OFFSETS = {"cls_logits": -4.95, "bbox_pred": 2.25, "maskiou_head.maskiou.": 0.6}
LOSSES = ("loss_mask", "loss_maskiou", "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr")


def draw(key, shape):
    """About-normal float64 numbers that depend on the name and shape alone."""
    bits = np.random.PCG64(zlib.crc32(key.encode())).random_raw(int(np.prod(shape)))
    total = np.asarray(bits, dtype=np.uint64).reshape(-1, 1).view(np.uint16).sum(axis=1, dtype=np.int64)
    return ((total - 131070) / np.sqrt((65536.0**2 - 1) / 3)).reshape(shape)


def look_up(table, key, default):
    return next((value for part, value in table.items() if part in key), default)


def make_weights(net):
    """The weights of the golden net as float32 arrays."""
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    return {key: _scale(key, shape, shapes).astype(np.float32) for key, shape in shapes.items()}


def _scale(key, shape, shapes):
    name, numbers = key.rsplit(".", 1)[-1], draw(key, shape)
    if name == "running_mean":
        return 0.1 * numbers
    if name == "running_var":
        return 1 + 0.2 * np.abs(numbers)
    if name == "scale":
        return 1 + 0.05 * numbers
    if name == "bias":
        of_norm = len(shapes[key.removesuffix("bias") + "weight"]) == 1
        return 0.05 * numbers if of_norm else 0.01 * numbers + look_up(OFFSETS, key, 0.0)
    if len(shape) == 1:
        return 1 + 0.1 * numbers
    inputs = shape[0] if "deconv.weight" in key else int(np.prod(shape[1:]))
    gain = 1 / 16 if len(shape) == 4 and shape[1] == 3 else look_up(GAINS, key, 1.0)
    return numbers * (gain * np.sqrt(2 / inputs))


def build_net(*, pre_nms=1000, post_nms=100):
    bottom_up = build_bottom_up("vovnet19_slim", in_channels=3, levels=(3, 4, 5), norm="frozen")
    fpn = FPN(bottom_up=bottom_up, levels=(3, 4, 5), out_channels=128)
    shape = {"class_count": 2, "in_channels": 128, "width": 128, "conv_count": 2}
    return CenterMask(
        backbone=fpn,
        proposal_generator=Fcos(
            head=FcosHead(channels=128, class_count=2, level_count=5, class_convs=2, box_convs=2),
            strides=fpn.strides,
            assigning=FcosAssigning(),
            losses=FcosLosses(),
            decoding=FcosDecoding(pre_nms=pre_nms, post_nms=post_nms),
            training_decoding=FcosDecoding(post_nms=100),
        ),
        roi_heads=CenterRoiHeads(
            pool=RoiPool(strides={level: fpn.strides[level] for level in (3, 4, 5)}),
            mask_head=MaskHead(**shape),
            maskiou_head=MaskIouHead(**shape),
            sampling=RoiSampling(),
            losses=MaskLosses(),
            roi_chunk=64,
        ),
    )


@pytest.fixture(scope="module")
def gold():
    return np.load(FILE)


@pytest.fixture(scope="module")
def weights(gold):
    found = make_weights(build_net())
    checksum = 0
    for key in sorted(found):
        checksum = zlib.crc32(found[key].tobytes(), checksum)
    assert checksum == json.loads(str(gold["meta"]))["weights_crc32"]
    return {key: torch.from_numpy(value) for key, value in found.items()}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def load_net(weights, **options):
    net = build_net(**options)
    net.load_state_dict(weights)
    return net


def prepare(*images):
    """Padded, normalised batch and the sizes of its images."""
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    sizes = [image.shape[1:] for image in images]
    height, width = (-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))
    batch = torch.zeros(len(images), 3, height, width)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = torch.from_numpy(image).float() - mean
    return batch, sizes


def read_truth(gold, prefix):
    cells = [[] for _ in gold[f"{prefix}.boxes"]]
    rings = np.split(gold[f"{prefix}.polygon_xy"], np.cumsum(gold[f"{prefix}.polygon_length"])[:-1])
    for ring, cell in zip(rings, gold[f"{prefix}.polygon_cell"], strict=True):
        cells[cell].append(ring)
    return GroundTruth(
        boxes=torch.from_numpy(gold[f"{prefix}.boxes"]),
        classes=torch.from_numpy(gold[f"{prefix}.classes"]),
        masks=PolygonMasks(cells),
    )


NO_TRUTH = GroundTruth(boxes=torch.zeros(0, 4), classes=torch.zeros(0, dtype=torch.int64), masks=PolygonMasks([]))


def read_case(gold, name):
    """Images and truths of a training case."""
    if name == "batch.train":
        images = [gold["image"], gold["batch.image1"], gold["batch.image2"]]
        return images, [read_truth(gold, "gt"), read_truth(gold, "batch.gt1"), NO_TRUTH]
    return [gold["image"]], [read_truth(gold, "gt") if name == "train" else NO_TRUTH]


def assert_near(found, expected, share):
    """Largest difference is at most that share of the largest magnitude."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= share * max(np.abs(expected).max(initial=0), 1e-30)


def pair(found_boxes, found_classes, boxes, classes):
    """For each expected detection the index of the found one nearest to it, of the same class; each used once."""
    assert len(found_boxes) == len(boxes)
    distance = np.abs(found_boxes[None] - boxes[:, None]).max(2) + 1e6 * (found_classes[None] != classes[:, None])
    nearest = distance.argmin(1) if len(boxes) else np.zeros(0, dtype=np.int64)
    assert len(set(nearest)) == len(boxes)
    return nearest


def finish(detections, size, output_size):
    """Boxes in px of the output, clipped, the empty ones dropped; and the index of those left."""
    known = {name: None if value is None else value.numpy() for name, value in vars(detections).items()}
    # the record of the runtime counts classes from 1, behind the background
    found = Detections(
        boxes=known["boxes"],
        scores=known["scores"],
        mask_scores=known["mask_scores"],
        class_id=known["classes"] + 1,
        class_scores=known["class_scores"],
        masks=known["masks"],
    )
    return found.rescale(from_shape=tuple(size), to_shape=tuple(output_size))


def assert_final(gold, prefix, found):
    """Boxes, scores, classes and masks of the finished detections."""
    boxes, classes = gold[f"{prefix}.final.boxes"], gold[f"{prefix}.final.classes"]
    order = pair(found.boxes, found.class_id - 1, boxes, classes)
    np.testing.assert_allclose(found.boxes[order], boxes, atol=5e-3)
    np.testing.assert_allclose(found.scores[order], gold[f"{prefix}.final.scores"], atol=2e-5)
    if len(boxes):  # the published code leaves the field out where nothing was found
        np.testing.assert_allclose(found.mask_scores[order], gold[f"{prefix}.final.mask_scores"], atol=2e-5)
    shape = tuple(int(side) for side in gold[f"{prefix}.final.output_size"])
    areas = gold[f"{prefix}.final.mask_area"]
    masks = [paint(found.masks[index], found.boxes[index], shape) for index in order]
    slack = 1e-4 * areas.sum() + 3
    assert abs(sum(mask.sum() for mask in masks) - areas.sum()) <= slack
    packed = gold.get(f"{prefix}.final.masks_packed")
    if packed is None or not len(packed):
        return
    expected = np.unpackbits(packed, axis=1, count=shape[0] * shape[1]).reshape(-1, *shape).astype(bool)
    assert sum(np.count_nonzero(one != other) for one, other in zip(masks, expected, strict=True)) <= slack


def paint(probability, box, shape):
    crop = crop_mask(probability, box, shape=shape)
    mask = np.zeros(shape, dtype=bool)
    mask[crop.top : crop.top + crop.mask.shape[0], crop.left : crop.left + crop.mask.shape[1]] = crop.mask
    return mask


@pytest.mark.parametrize("case", ["eval", "none"])
def test_pyramid_and_predictions(gold, weights, threads, case):
    net = load_net(weights).eval()
    batch, _ = prepare(gold["image"] if case == "eval" else gold["none.image"])
    np.testing.assert_array_equal(batch.shape, gold[f"{case}.padded_input.shape"])
    np.testing.assert_array_equal(batch[:, :, ::16, ::16], gold[f"{case}.padded_input.sample"])
    with torch.no_grad():
        pyramid = net.encode(batch)
        outputs = net.predict(pyramid)
    for index, (level, maps) in enumerate(pyramid.items()):
        np.testing.assert_array_equal(maps.shape, gold[f"{case}.p{level}.shape"])
        spread = [maps.double().mean(), maps.double().std(correction=0)]
        assert_near(spread, gold[f"{case}.p{level}.mean_std"], 3e-5)
        step = {3: 8, 4: 4}.get(level)
        known = gold[f"{case}.p{level}{'.sample' if step else ''}"]
        assert_near(maps[:, ::16, ::step, ::step] if step else maps, known, 3e-5)
        assert_near(outputs.class_logits[index], gold[f"{case}.cls_logits.p{level}"], 3e-5)
        assert_near(outputs.ltrb[index], gold[f"{case}.box_ltrb.p{level}"], 3e-5)
        assert_near(outputs.centreness_logits[index], gold[f"{case}.ctrness_logits.p{level}"], 3e-5)


@pytest.mark.parametrize("case", ["eval", "none"])
def test_detections(gold, weights, threads, case):
    net = load_net(weights).eval()
    batch, sizes = prepare(gold["image"] if case == "eval" else gold["none.image"])
    with torch.no_grad():
        pyramid = net.encode(batch)
        (found,) = net.detect(pyramid, net.predict(pyramid), sizes)
    known = {name: gold[f"{case}.proposal.{name}"] for name in ("boxes", "scores", "classes", "locations")}
    order = pair(found.boxes.numpy(), found.classes.numpy(), known["boxes"], known["classes"])
    np.testing.assert_allclose(found.boxes[order], known["boxes"], atol=5e-3)
    np.testing.assert_allclose(found.scores[order], known["scores"], atol=2e-5)
    np.testing.assert_array_equal(found.locations[order], known["locations"])
    np.testing.assert_allclose(found.masks[order], gold[f"{case}.mask28"], atol=1e-4)
    assert (found.scores.diff() <= 0).all()
    assert_final(gold, case, finish(found, sizes[0], gold[f"{case}.final.output_size"]))


def test_pooled_features_and_mask_logits(gold, weights, threads):
    net = load_net(weights).eval()
    batch, sizes = prepare(gold["image"])
    boxes = torch.from_numpy(gold["eval.proposal.boxes"])
    with torch.no_grad():
        pooled = net.roi_heads.pool(net.encode(batch), *flatten_boxes([boxes], sizes))
        logits = net.roi_heads.mask_head(pooled)
    assert_near(pooled[::8, ::16], gold["eval.roi_feature.sample"], 3e-5)
    assert_near([pooled.double().mean(), pooled.double().std(correction=0)], gold["eval.roi_feature.mean_std"], 3e-5)
    assert_near(logits[::8], gold["eval.mask_logits.sample"], 3e-5)


def test_limits_on_candidates_and_boxes(gold, weights, threads):
    net = load_net(weights, pre_nms=40, post_nms=20).eval()
    batch, sizes = prepare(gold["image"])
    with torch.no_grad():
        pyramid = net.encode(batch)
        (found,) = net.detect(pyramid, net.predict(pyramid), sizes)
    assert_final(gold, "topk", finish(found, sizes[0], gold["topk.final.output_size"]))


def test_a_batch_of_three_sizes(gold, weights, threads):
    net = load_net(weights).eval()
    batch, sizes = prepare(gold["image"], gold["batch.image1"], gold["batch.image2"])
    with torch.no_grad():
        pyramid = net.encode(batch)
        results = net.detect(pyramid, net.predict(pyramid), sizes)
    for index, (found, size) in enumerate(zip(results, sizes, strict=True)):
        prefix = f"batch.eval{index}"
        assert_final(gold, prefix, finish(found, size, gold[f"{prefix}.final.output_size"]))


@pytest.mark.parametrize("case", ["train", "train_empty", "batch.train"])
def test_losses_and_gradients(gold, weights, threads, case):
    net = load_net(weights).train()
    images, truths = read_case(gold, case)
    batch, sizes = prepare(*images)
    pyramid = net.encode(batch)
    losses = net.losses(pyramid, net.predict(pyramid), sizes, truths)
    for name in LOSSES:
        tolerance = 1e-3 if name == "loss_maskiou" else 1e-4
        assert losses[name].item() == pytest.approx(float(gold[f"{case}.{name}"]), rel=tolerance, abs=1e-12)
    sum(losses.values()).backward()
    parameters = dict(net.named_parameters())
    assert all(each.grad is not None and each.grad.isfinite().all() for each in parameters.values())
    for name in json.loads(str(gold["meta"]))["grad_parameters"]:
        slopes = parameters[name].grad.flatten()
        expected = float(gold[f"{case}.grad_norm.{name}"])
        assert slopes.double().norm().item() == pytest.approx(expected, rel=1e-2, abs=1e-12)
        assert_near(slopes[:: max(1, len(slopes) // 64)][:64], gold[f"{case}.grad_sample.{name}"], 5e-2)


@pytest.mark.parametrize("case", ["train", "train_empty", "batch.train"])
def test_assigned_places(gold, weights, case):
    net = build_net()
    images, truths = read_case(gold, case)
    batch, _ = prepare(*images)
    strides = list(net.proposal_generator.strides.values())
    shapes = [[-(-side // stride) for side in batch.shape[-2:]] for stride in strides]
    targets = assign_targets(truths, strides=strides, shapes=shapes, options=FcosAssigning())
    assert len(targets.ignored) == gold[f"{case}.fcos.num_locations"]
    assert not targets.ignored.any()
    np.testing.assert_array_equal(targets.positive, gold[f"{case}.fcos.positive_index"])
    np.testing.assert_array_equal(targets.classes, gold[f"{case}.fcos.positive_class"])
    np.testing.assert_allclose(targets.ltrb, gold[f"{case}.fcos.positive_ltrb"], rtol=1e-6)


@pytest.mark.parametrize("case", ["train", "batch.train"])
def test_regions_with_their_masks_and_overlaps(gold, weights, threads, case):
    net = load_net(weights).train()
    images, truths = read_case(gold, case)
    batch, sizes = prepare(*images)
    with torch.no_grad():
        pyramid = net.encode(batch)
        proposals = net.proposal_generator.propose(net.predict(pyramid))
        assert [len(each.boxes) for each in proposals] == gold[f"{case}.proposals_per_image"].tolist()
        regions = [sample_regions(p.boxes, t, RoiSampling()) for p, t in zip(proposals, truths, strict=True)]
        boxes, owners, areas = flatten_boxes([each.boxes for each in regions], sizes)
        classes = torch.cat([each.classes for each in regions])
        logits = choose_class(net.roi_heads.mask_head(net.roi_heads.pool(pyramid, boxes, owners, areas)), classes)
    masks = crop_masks(regions, truths, side=28)
    ious = compute_mask_ious(logits.squeeze(1), masks, compute_inside_shares(regions, truths))
    order = np.lexsort((*boxes.numpy().T[::-1], owners.numpy()))
    np.testing.assert_array_equal(owners[order], gold[f"{case}.roi.image"])
    np.testing.assert_allclose(boxes[order], gold[f"{case}.roi.boxes"], atol=5e-3)
    np.testing.assert_array_equal(classes[order], gold[f"{case}.roi.classes"])
    expected = np.unpackbits(gold[f"{case}.roi.mask_target_packed"], axis=1, count=784).reshape(-1, 28, 28)
    assert np.count_nonzero(masks[order].numpy() != expected) <= 1e-4 * expected.sum() + 3
    np.testing.assert_allclose(ious[order], gold[f"{case}.roi.iou_target"], atol=5e-3)
