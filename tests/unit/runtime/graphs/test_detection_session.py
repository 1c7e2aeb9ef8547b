import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cellvision.bundle import Detecting
from cellvision.errors import BundleError
from cellvision.runtime.graphs.detection_session import REGIONS, DetectionSession
from cellvision.runtime.graphs.map_session import MapSession
from cellvision.runtime.session import open_session
from dot_net import (
    DETECTING,
    OUTPUTS,
    build_masks,
    build_trunk,
    build_whole,
    draw_disc,
    draw_dots,
    write_dot_bundle,
)

UNRATED = OUTPUTS[:-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return open_session(write_dot_bundle(tmp_path_factory.mktemp("whole") / "b"), threads=1)


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    return open_session(write_dot_bundle(tmp_path_factory.mktemp("parted") / "b", parted=True), threads=1)


@pytest.fixture(params=["whole", "parted"])
def session(request):
    return request.getfixturevalue(request.param)


def scatter(shape, count, seed=0):
    """Dots at distinct pixels; of different scores."""
    rng = np.random.default_rng(seed)
    at = rng.choice(shape[0] * shape[1], count, replace=False)
    radii = rng.integers(6, 25, count) / 2
    centres = np.stack(np.divmod(at, shape[1]), axis=1)
    return draw_dots(shape, centres, radii, dead=set(range(0, count, 3)))


def check_same(one, other):
    for name, values in vars(one).items():
        np.testing.assert_allclose(getattr(other, name), values, rtol=1e-6, err_msg=name)


def test_cells_of_known_arithmetic(session):
    found = session.run(draw_dots((60, 70), [(20, 20), (40, 50), (2, 2)], [8, 6.5, 5], dead={1}))
    assert isinstance(session, DetectionSession)
    expected = [[12.5, 12.5, 28.5, 28.5], [44, 34, 57, 47], [-2.5, -2.5, 7.5, 7.5]]
    np.testing.assert_array_equal(found.boxes, np.array(expected, np.float32))
    np.testing.assert_allclose(found.scores, [1, 0.6, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found.mask_scores, [1, 0.45, 0.2], rtol=1e-6)
    np.testing.assert_allclose(found.class_scores, [[1, 0], [0, 0.6], [0.2, 0]], rtol=1e-6)
    assert found.class_id.tolist() == [1, 2, 1]
    np.testing.assert_array_equal(found.masks, np.stack([draw_disc()] * 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 3), (64, 64)])
def test_images_without_cells(session, shape):
    found = session.run(np.zeros((3, *shape), np.uint16))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 28, 28)
    assert found.class_scores.shape == (0, 2)


def test_parts_say_what_the_whole_says(whole, parted):
    # Far enough apart that only the trunk's own doubles are suppressed.
    centres = [(y, x) for y in range(12, 200, 25) for x in range(12, 200, 25)]
    image = draw_dots((200, 200), centres, 9, dead=set(range(0, 60, 4)))
    assert len(whole.run(image)) == len(centres) == REGIONS
    check_same(parted.run(image), whole.run(image))


def test_masks_come_in_portions(tmp_path):
    detecting = Detecting(nms_iou=0.6, max_cells=3 * REGIONS - 5)
    sessions = [
        open_session(write_dot_bundle(tmp_path / str(parted), parted=parted, detecting=detecting))
        for parted in (False, True)
    ]
    centres = [(y, x) for y in range(12, 360, 24) for x in range(12, 360, 24)]
    assert len(centres) > detecting.max_cells
    image = draw_dots((360, 360), centres, 9)
    one, other = (session.run(image) for session in sessions)
    assert len(one) == detecting.max_cells
    assert (other.masks.sum(axis=(1, 2)) == draw_disc().sum()).all()
    check_same(one, other)


def test_a_batch_is_its_images(session):
    images = np.stack([scatter((50, 61), count, seed) for seed, count in enumerate((5, 0, 30))])
    batch = session.run_batch(images)
    assert [len(found) > 0 for found in batch] == [True, False, True]
    for image, found in zip(images, batch, strict=True):
        check_same(session.run(image), found)


def test_doubles_of_a_class_are_suppressed_between_the_parts(parted):
    near = draw_dots((40, 40), [(20, 20), (20, 22), (20, 23)], 8, dead={2})
    found = parted.run(near)
    assert found.class_id.tolist() == [1, 2]  # (20, 22) shows the cell at (20, 20) again; the dead one is no rival
    assert found.boxes[:, 0].tolist() == [12.5, 15.5]


@pytest.mark.parametrize(("least", "cells"), [(0.0, 5), (0.5, 3), (0.9, 1)])
def test_boxes_of_lower_scores_get_no_mask(tmp_path, least, cells):
    detecting = Detecting(max_cells=64, min_score=least)
    session = open_session(write_dot_bundle(tmp_path / "b", parted=True, detecting=detecting))
    centres = [(20, 20 + 25 * n) for n in range(5)]
    found = session.run(draw_dots((40, 150), centres, 8, scores=[0.1, 0.4, 0.5, 0.7, 0.9]))
    assert len(found) == cells


def test_the_best_are_kept(session):
    centres = [(y, x) for y in range(10, 260, 20) for x in range(10, 260, 20)]
    scores = np.random.default_rng(0).permutation(np.linspace(0.1, 1, len(centres)))
    found = session.run(draw_dots((260, 260), centres, 8, scores=scores))
    assert len(found) == DETECTING.max_cells < len(centres)
    np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:64], atol=1e-5)


@pytest.mark.parametrize("parted", [False, True])
def test_nets_that_do_not_rate_masks(tmp_path, parted):
    session = open_session(write_dot_bundle(tmp_path / "b", parted=parted, outputs=UNRATED))
    assert session.run(draw_dots((40, 40), [(20, 20)], 8)).mask_scores is None


def test_kinds_of_sessions(whole, parted, stain_bundle):
    assert isinstance(open_session(stain_bundle), MapSession)
    assert isinstance(whole, DetectionSession)
    assert type(whole) is not type(parted)


def rename(model, old, new):
    """The same graph with another name for an input or output."""
    text = model.SerializeToString().replace(
        b"\x0a" + bytes([len(old)]) + old.encode(), b"\x0a" + bytes([len(old)]) + new.encode()
    )
    model = onnx.ModelProto.FromString(text)
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    return model


@pytest.mark.parametrize(
    ("graphs", "facts", "message"),
    [
        ((build_whole(detecting=Detecting(max_cells=9)),), {}, r"boxes: .*\[B, 9, 4\].* need .*\[B, 64, 4\]"),
        ((build_whole(detecting=Detecting(max_cells=64, mask_side=14)),), {}, r"\[B, 64, 14, 14\].* need .*28, 28"),
        ((build_whole(rated=False),), {}, r"need outputs .*mask_scores: tensor\(float\) \[B, 64\]"),
        ((build_whole(),), {"outputs": UNRATED}, r"whole.onnx has outputs .*mask_scores"),
        ((build_whole(),), {"classes": ("background", "cell")}, r"class_scores: .*\[B, 64, 2\].* need .*64, 1\]"),
        ((build_whole(input_dtype="uint8"),), {}, r"image: tensor\(uint8\).* need .*tensor\(uint16\)"),
        ((build_whole(), build_masks()), {}, r"trunk.onnx has outputs .*need outputs .*map_0"),
        ((build_trunk(), build_trunk()), {}, r"masks.onnx has inputs image.* need inputs map_0: .*map_1: .*image_area"),
        ((build_trunk(), build_masks(side=14)), {}, r"masks.onnx has outputs masks: .*\[R, 14, 14\]"),
        ((build_trunk(), build_masks(rated=False)), {}, r"masks.onnx has outputs .*need outputs .*mask_ious"),
        ((rename(build_trunk(), "map_1", "map_2"), build_masks()), {}, r"has outputs .*map_2.* need outputs .*map_1"),
        ((build_trunk(input_dtype="float32"), build_masks()), {}, r"trunk.onnx has inputs image: tensor\(float\)"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_suit_their_manifest(tmp_path, graphs, facts, message):
    folder = write_dot_bundle(tmp_path / "b", *graphs, parted=len(graphs) == 2, **facts)
    with pytest.raises(BundleError, match=message):
        open_session(folder)


def alter(model, output, value):
    """The same graph with ``value`` added to an output."""
    for node in model.graph.node:
        node.output[:] = ["plain" if name == output else name for name in node.output]
        node.input[:] = ["plain" if name == output else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "more"))
    model.graph.node.append(helper.make_node("Add", ["plain", "more"], [output]))
    return model


@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        ((alter(build_whole(), "boxes", np.float32("nan")),), "whole.onnx: output 'boxes' holds NaN"),
        ((alter(build_whole(), "masks", np.float32("inf")),), "whole.onnx: output 'masks' holds NaN or infinite"),
        ((alter(build_whole(), "classes", np.int64(2)),), "whole.onnx: output 'classes' holds 3 to 3; need 1 to 2"),
        ((alter(build_trunk(), "classes", np.int64(-1)), build_masks()), "trunk.onnx: output 'classes' holds 0 to"),
        ((alter(build_trunk(), "scores", np.float32("nan")), build_masks()), "trunk.onnx: output 'scores' holds NaN"),
        ((build_trunk(), alter(build_masks(), "masks", np.float32("nan"))), "masks.onnx: output 'masks' holds NaN"),
        ((build_trunk(), alter(build_masks(), "mask_ious", np.float32("inf"))), "output 'mask_ious' holds NaN"),
    ],
)
def test_results_that_mean_nothing_are_refused(tmp_path, graphs, message):
    session = open_session(write_dot_bundle(tmp_path / "b", *graphs, parted=len(graphs) == 2))
    with pytest.raises(BundleError, match=message):
        session.run(draw_dots((40, 40), [(20, 20)], 8))


def test_results_of_another_size_are_refused(tmp_path):
    graph = alter(build_whole(), "scores", np.float32(0))
    graph.graph.node[-1].CopyFrom(helper.make_node("Concat", ["plain", "plain"], ["scores"], axis=0))
    session = open_session(write_dot_bundle(tmp_path / "b", graph))
    with pytest.raises(BundleError, match=r"'scores' has shape \(2, 64\); need \(1, 64\)"):
        session.run(draw_dots((40, 40), [(20, 20)], 8))


def test_graphs_that_fail_say_on_what(tmp_path, whole):
    with pytest.raises(BundleError, match=r"whole.onnx failed on 4x4 px"):
        whole.run(np.ones((2, 4, 4), np.uint16))
    masks = build_masks()
    next(node for node in masks.graph.node if node.op_type == "Min").op_type = "Add"
    session = open_session(write_dot_bundle(tmp_path / "b", build_trunk(), masks, parted=True))
    with pytest.raises(BundleError, match=r"masks.onnx failed on 1 cells .*a smaller tile_px"):
        session.run(draw_dots((40, 40), [(20, 20)], 8))


def test_float_images(tmp_path):
    graph = build_whole(input_dtype="float32")
    assert graph.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    session = open_session(write_dot_bundle(tmp_path / "b", graph, input_dtype="float32"))
    image = draw_dots((40, 40), [(20, 20)], 8)
    assert len(session.run(image.astype(np.float32))) == 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_cells_to_see_what_cells_take(tmp_path, dtype):
    graph = build_whole(input_dtype=dtype)
    session = open_session(write_dot_bundle(tmp_path / "b", graph, input_dtype=dtype, image_dtypes=(dtype,)))
    seen = []
    run = session.run
    session.run = lambda image: seen.append(image) or run(image)
    assert session.probe_cells(96) == DETECTING.max_cells  # to this net every pixel above 0 is a cell
    (image,) = seen
    assert image.shape == (3, 96, 96)
    assert image.dtype == dtype
    assert (image[:, 12::24, 12::24] == image.max()).all()
    assert (image[:, ::24, ::24] == image.min()).all()
    session.run = lambda image: seen.append(image) or []
    assert session.probe_cells(96) == 0
    assert seen[2][0, 12, 12] < seen[2][0, 0, 0]
