from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cellvision.errors import ConfigError, ExportError
from cellvision.export.quantize.calibration import build_feeds, collect_training_fields, measure_ranges, tap
from cellvision.types import Sample


def build_graph():
    """image -> shift by -1 -> ReLU -> double."""
    nodes = [
        helper.make_node("Add", ["image", "one"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["positive"]),
        helper.make_node("Add", ["positive", "positive"], ["double"]),
    ]
    shape = ["batch", 1, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("double", TensorProto.FLOAT, shape)],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [-1.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def model():
    return build_graph()


@pytest.fixture
def images():
    """The first is dark: ranges must not depend on the order."""
    rng = np.random.default_rng(0)
    return [rng.normal(0, spread, (1, 40, 50)).astype(np.float32) for spread in (0.01, 3.0, 1.0)]


def get_ends(ranges, name):
    return tuple(float(end) for end in ranges[name].range_value)


def test_tiles_cover_the_fields_evenly():
    fields = [np.full((1, 100, 60), value, np.uint16) for value in range(5)]

    every = build_feeds(fields, dtype="float32", tile_px=50, most=100)
    some = build_feeds(fields, dtype="uint8", tile_px=50, most=5)

    assert len(every) == 20
    assert sum(feed["image"].size for feed in every) == 5 * 100 * 60
    assert {feed["image"].dtype.name for feed in every} == {"float32"}
    assert [int(feed["image"].mean()) for feed in some] == [0, 1, 2, 3, 4]
    assert some[0]["image"].dtype == np.uint8


@pytest.mark.parametrize(("count", "options"), [(0, {}), (1, {"most": 0}), (1, {"tile_px": 0})])
def test_refuses_to_calibrate_on_nothing(count, options):
    with pytest.raises(ConfigError, match="for calibration; need at least one of each"):
        build_feeds([np.zeros((1, 8, 8), np.uint8)] * count, dtype="uint8", **options)


class View:
    """Nine fields of three channels; field i has 10 * channel + i everywhere."""

    def __len__(self):
        return 9

    def sample(self, index):
        image = np.stack([np.full((4, 4), 10 * c + index, np.uint8) for c in range(3)])
        labels = np.zeros((4, 4), np.int32)
        return Sample(name="a", group="a", image=image, label_image=labels, cell_classes=np.zeros(0, np.int64))


def test_takes_training_fields_with_the_nets_channels():
    data = SimpleNamespace(views={"train": View()}, channel_positions=[2, 0])
    fields = collect_training_fields(data, 3)
    assert [field.image[:, 0, 0].tolist() for field in fields] == [[20, 0], [24, 4], [28, 8]]


def test_taps_give_what_the_graph_computes_in_as_many_passes_as_memory_needs(model, images):
    feeds = build_feeds(images, dtype="float32")
    lines = []
    tensors = ["image", "shifted", "positive", "double"]

    one = {(index, name): values for index, name, values in tap(model, tensors, feeds)}
    many = {
        (index, name): values for index, name, values in tap(model, tensors, feeds, memory_mib=0.001, tell=lines.append)
    }

    assert lines[-1] == "calibration: 12 of 12 runs"  # four passes over three feeds
    assert set(one) == set(many) == {(index, name) for index in range(3) for name in tensors}
    for (index, name), values in one.items():
        image = feeds[index]["image"]
        expected = {"image": image, "shifted": image - 1, "positive": np.maximum(image - 1, 0)}
        expected["double"] = 2 * expected["positive"]
        np.testing.assert_array_equal(values, expected[name])
        np.testing.assert_array_equal(many[(index, name)], expected[name])


def test_minmax_is_over_all_images(model, images):
    ranges = measure_ranges(model, ["shifted", "positive"], build_feeds(images, dtype="float32"))
    lowest, highest = min(image.min() for image in images) - 1, max(image.max() for image in images) - 1
    assert get_ends(ranges, "shifted") == pytest.approx((lowest, highest))
    assert get_ends(ranges, "positive") == pytest.approx((0, highest))


def test_symmetric_ranges_are_around_zero(model, images):
    ranges = measure_ranges(model, ["shifted", "positive"], build_feeds(images, dtype="float32"), symmetric=True)
    low, high = get_ends(ranges, "shifted")
    assert low == -high == pytest.approx(min(image.min() for image in images) - 1)
    assert get_ends(ranges, "positive") == pytest.approx(
        (1 - max(i.max() for i in images), max(i.max() for i in images) - 1)
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_percentile_keeps_that_share_of_all_values(model, images, symmetric):
    ranges = measure_ranges(
        model,
        ["image"],
        build_feeds(images, dtype="float32"),
        method="percentile",
        percentile=98.0,
        symmetric=symmetric,
    )
    low, high = get_ends(ranges, "image")
    values = np.concatenate([image.ravel() for image in images])
    assert np.mean((values >= low) & (values <= high)) == pytest.approx(0.98, abs=0.002)
    if symmetric:
        assert low == -high
    else:
        assert np.mean(values < low) == pytest.approx(0.01, abs=0.001)


def test_entropy_gives_up_a_rare_extreme_whatever_the_order(model, images):
    images[1][0, 0, 0] = 60.0  # one pixel, twenty standard deviations out
    found = [
        get_ends(measure_ranges(model, ["image"], build_feeds(order, dtype="float32"), method="entropy"), "image")
        for order in (images, images[::-1])
    ]
    assert found[0] == pytest.approx(found[1])
    assert 3.0 < found[0][1] < 20.0


def test_refuses_values_that_are_not_finite(model, images):
    images[2][0, 3, 3] = np.nan
    with pytest.raises(ExportError, match="tensor 'shifted' has values that are not finite"):
        measure_ranges(model, ["shifted"], build_feeds(images, dtype="float32"))


def test_refuses_unknown_methods_and_percentiles(model, images):
    feeds = build_feeds(images, dtype="float32")
    with pytest.raises(ConfigError, match=r"unknown calibration method 'max'.*minmax"):
        measure_ranges(model, ["image"], feeds, method="max")
    for options in ({"percentile": 50.0}, {"percentile": 101.0}, {"percentile": float("nan")}):
        with pytest.raises(ConfigError, match="need at least one image and a percentile above 50"):
            measure_ranges(model, ["image"], feeds, **options)
    with pytest.raises(ConfigError, match="0 calibration images"):
        measure_ranges(model, ["image"], [])


def test_the_graph_itself_is_left_as_it_was(model, images):
    before = model.SerializeToString()
    measure_ranges(model, ["shifted"], build_feeds(images, dtype="float32"), method="percentile")
    assert model.SerializeToString() == before
    onnxruntime.InferenceSession(before, providers=["CPUExecutionProvider"])
    onnx.checker.check_model(model)
