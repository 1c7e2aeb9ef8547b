"""Decoding against loops over levels, places and classes, with torchvision's suppression."""

import pytest
import torch
from torchvision.ops import batched_nms

from cellvision.models.centermask2.fcos.decode import decode, rank
from cellvision.models.centermask2.fcos.head import FcosOutputs
from cellvision.models.centermask2.options import FcosDecoding
from cellvision.ops.topk import LARGEST_K

STRIDES = [8, 16]
SHAPES = [(6, 8), (3, 4)]


def make_outputs(seed=0, batch=2, classes=2, shift=0.0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)

    def draw(channels):
        return tuple(torch.randn(batch, channels, *shape, generator=generator) for shape in shapes)

    class_logits = tuple(each + shift for each in draw(classes))
    return FcosOutputs(class_logits=class_logits, ltrb=tuple(each.abs() for each in draw(4)), centreness_logits=draw(1))


def decode_naively(outputs, image, options):
    """(box, score, class, place, class scores) of every detection of one image, best first."""
    found = []
    for level, stride in enumerate(STRIDES):
        classes = outputs.class_logits[level][image].double().sigmoid()
        centreness = outputs.centreness_logits[level][image, 0].double().sigmoid()
        ltrb = outputs.ltrb[level][image].double() * stride
        here = []
        for name, row, column in (classes > -1).nonzero().tolist():
            score = classes[name, row, column] * centreness[row, column]
            compared = score if options.threshold_with_centreness else classes[name, row, column]
            if compared > options.score_threshold:
                x, y = column * stride + stride // 2, row * stride + stride // 2
                left, top, right, bottom = ltrb[:, row, column].tolist()
                box = (x - left, y - top, x + right, y + bottom)
                here.append((box, score.sqrt().item(), name, (x, y), classes[:, row, column].tolist()))
        found += sorted(here, key=lambda each: -each[1])[: options.candidates]
    if not found:
        return []
    boxes, scores, names = (torch.tensor([each[i] for each in found]) for i in range(3))
    kept = batched_nms(boxes.double(), scores.double(), names, options.nms_iou)
    return [found[index] for index in kept.tolist()][: options.post_nms]


@pytest.mark.parametrize(
    "options",
    [
        FcosDecoding(),
        FcosDecoding(score_threshold=0.6, nms_iou=0.3),
        FcosDecoding(score_threshold=0.3, threshold_with_centreness=True),
        FcosDecoding(pre_nms=9, post_nms=1000, nms_iou=0.9),
        FcosDecoding(pre_nms=30, post_nms=7),
        FcosDecoding(score_threshold=1.0),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_detections_are_those_of_the_loops(options, seed):
    outputs = make_outputs(seed)
    for image, found in enumerate(decode(outputs, strides=STRIDES, options=options)):
        expected = decode_naively(outputs, image, options)
        columns = [torch.tensor([each[i] for each in expected]) for i in range(5)]
        assert len(found.scores) == len(expected)
        if expected:
            torch.testing.assert_close(found.boxes, columns[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.scores, columns[1], rtol=1e-4, atol=1e-5)
            assert torch.equal(found.classes, columns[2])
            assert torch.equal(found.locations, columns[3].float())
            torch.testing.assert_close(found.class_scores, columns[4], rtol=1e-4, atol=1e-5)


def test_nothing_found_keeps_shapes_and_dtypes():
    for found in decode(make_outputs(shift=-99.0), strides=STRIDES, options=FcosDecoding()):
        shapes = {name: tuple(value.shape) for name, value in vars(found).items()}
        assert shapes == {
            "boxes": (0, 4), "scores": (0,), "classes": (0,), "locations": (0, 2), "class_scores": (0, 2),
        }  # fmt: skip
        assert found.classes.dtype == torch.int64


def test_soft_suppression_keeps_overlapping_boxes_with_less_score():
    """One place finds a cell twice, in both classes and so unfaded; its neighbour finds the same box again."""
    maps = torch.full((1, 2, 1, 2), -20.0)
    maps[0, 0, 0] = torch.tensor([3.0, 2.0])
    maps[0, 1, 0, 0] = 1.0
    ltrb = torch.tensor([[1.0, 2.0], [2, 2], [2, 1], [2, 2]]).view(1, 4, 1, 2)
    outputs = FcosOutputs(class_logits=(maps,), ltrb=(ltrb,), centreness_logits=(torch.full((1, 1, 1, 2), 20.0),))
    hard = decode(outputs, strides=[8], options=FcosDecoding())[0]
    soft = decode(outputs, strides=[8], options=FcosDecoding(soft_nms_sigma=0.5))[0]
    strict = decode(outputs, strides=[8], options=FcosDecoding(soft_nms_sigma=0.5, score_threshold=0.2))[0]
    expected = torch.tensor([3.0, 1.0, 2.0]).sigmoid().sqrt() * torch.tensor([1, 1, torch.tensor(-2.0).exp()])
    assert hard.classes.tolist() == [0, 1]
    assert soft.classes.tolist() == [0, 1, 0]
    torch.testing.assert_close(soft.scores, expected)
    assert soft.locations.tolist() == [[4, 4], [4, 4], [12, 4]]
    assert strict.classes.tolist() == [0, 1]


def test_half_precision_maps_are_decoded_in_float32():
    outputs = make_outputs()
    halves = FcosOutputs(**{name: tuple(each.half() for each in maps) for name, maps in vars(outputs).items()})
    found = decode(halves, strides=STRIDES, options=FcosDecoding())[0]
    assert found.boxes.dtype == found.scores.dtype == torch.float32


def test_a_class_probability_equal_to_the_threshold_is_not_above_it():
    outputs = make_outputs()
    flat = FcosOutputs(
        class_logits=tuple(maps * 0 for maps in outputs.class_logits),
        ltrb=outputs.ltrb,
        centreness_logits=outputs.centreness_logits,
    )
    for threshold, is_found in ((0.5, False), (0.499, True)):
        found = decode(flat, strides=STRIDES, options=FcosDecoding(score_threshold=threshold))
        assert [len(each.scores) > 0 for each in found] == [is_found, is_found]


@pytest.mark.parametrize("pre_nms", [LARGEST_K, LARGEST_K + 1, 6000, 9000])
def test_graphs_have_the_candidates_of_the_net_and_places_for_more(pre_nms):
    """Graphs look for no more at a time than an engine can; of 8,192 at the first level."""
    options = FcosDecoding(score_threshold=0.2, pre_nms=pre_nms)
    outputs = make_outputs(shapes=[(64, 64), (32, 32)])
    expected = rank(outputs, strides=STRIDES, options=options)
    found = rank(outputs, strides=STRIDES, options=options, fill_up=True)
    assert found.scores.shape == (2, 2 * pre_nms)
    for image in range(2):
        of_graph, of_net = (one[image][one.scores[image] >= 0] for one in (found, expected))
        assert len(of_net.scores) > LARGEST_K + 1
        for name, values in vars(of_net).items():
            assert torch.equal(vars(of_graph)[name], values)


def make_crowd(*, across, pitch=3):
    """One level of stride 8 with ``across`` squared cells of 20 px, each seen by the 9 places around its centre."""
    edge = across * pitch
    seen = torch.arange(edge) // pitch
    offset = (torch.arange(edge) % pitch - pitch // 2) * 8.0
    quality = torch.randn(across, across, generator=torch.Generator().manual_seed(0))
    top, left = (10 + offset)[:, None].expand(edge, edge), (10 + offset)[None].expand(edge, edge)
    ltrb = torch.stack([left, top, 20 - left, 20 - top]).clamp_min(0) / 8
    class_logits = quality[seen][:, seen]
    return FcosOutputs(
        class_logits=(class_logits[None, None],), ltrb=(ltrb[None],), centreness_logits=(ltrb[None, :1] * 0,)
    )


@pytest.mark.parametrize(("candidates", "expected"), [(None, 1024), (2000, 223)])
def test_a_crowd_is_found_whole_unless_candidates_are_limited(candidates, expected):
    options = FcosDecoding(score_threshold=0.01, pre_nms=candidates, post_nms=1100)
    (found,) = decode(make_crowd(across=32), strides=[8], options=options)
    assert len(found.scores) == expected
