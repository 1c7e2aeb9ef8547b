import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cellvision.errors import ConfigError, ExportError
from cellvision.export.onnx import export_onnx


@pytest.fixture
def graph(graphs):
    return graphs["float32"]


def run(path, image):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": image})


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 2, 1, 300), (3, 2, 33, 257), (2, 2, 128, 64)])
def test_any_batch_and_size_agrees_with_the_net(net, graph, shape):
    image = np.random.default_rng(0).uniform(0, 500, shape).astype(np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(image))
    found = run(graph, image)
    for name, result in zip(("probabilities", "distance"), found, strict=True):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected[name].numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integer_counts_are_cast_inside(graphs, dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (1, 2, 17, 30)).astype(dtype)
    of_float32 = run(graphs["float32"], image.astype(np.float32))
    for integer, real in zip(run(graphs[dtype], image), of_float32, strict=True):
        np.testing.assert_allclose(integer, real, atol=1e-6)


def test_graph_is_one_plain_file_that_names_its_axes(graph):
    model = onnx.load(graph)
    assert sorted(path.name for path in graph.parent.iterdir()) == ["float32.onnx", "uint16.onnx", "uint8.onnx"]
    assert [value.name for value in model.graph.output] == ["probabilities", "distance"]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 2, "height", "width"]
    assert model.opset_import[0].version == 20


def test_graph_holds_no_path_of_this_machine(graph):
    assert b".py" not in graph.read_bytes()


def test_training_net_gives_the_same_bytes_and_is_left_as_it_is(net, graph, tmp_path, capfd):
    training = copy.deepcopy(net).train().requires_grad_(True)
    training.norm.eval()
    path = export_onnx(training, tmp_path / "graph.onnx")
    assert path.read_bytes() == graph.read_bytes()
    assert capfd.readouterr() == ("", "")
    assert training.training
    assert not training.norm.training
    assert all(weight.requires_grad for weight in training.parameters())


def test_untraceable_net_leaves_no_file(tiny, tmp_path):
    class Branching(tiny[0]):
        def forward(self, images):
            return super().forward(images if images.sum().item() > 0 else images + 1)

    with pytest.raises(ExportError, match=r"part 'whole' of the net could not be made into a graph \(.+\); need "):
        export_onnx(Branching(), tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_net_that_fixes_the_size_is_refused(tiny, tmp_path):
    class Fixed(tiny[0]):
        def __init__(self):
            super().__init__(kind="semantic")
            self.resize = nn.Linear(61, 61)

        def forward(self, images):
            return {"probabilities": self.resize(super().forward(images)["probabilities"])}

    with pytest.raises(
        ExportError, match=r"came out with a fixed width in 'probabilities'; need .* any batch and size"
    ):
        export_onnx(Fixed(), tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_output_is_an_export_error(tiny, tmp_path):
    class Silent(tiny[0]):
        def forward(self, images):
            return {"probabilities": super().forward(images)["probabilities"]}

    with pytest.raises(ExportError, match="distance"):
        export_onnx(Silent(), tmp_path / "graph.onnx")


def test_unknown_options_list_what_exists(net, tmp_path):
    with pytest.raises(ConfigError, match="unknown input_dtype 'int8'; need one of: float32, uint16, uint8"):
        export_onnx(net, tmp_path / "graph.onnx", input_dtype="int8")
    with pytest.raises(ConfigError, match="opset=12; need 18 to"):
        export_onnx(net, tmp_path / "graph.onnx", opset=12)
