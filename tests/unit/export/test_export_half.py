import onnx
import onnxruntime
import pytest
import torch

from cellvision.errors import ExportError
from cellvision.export.half import to_half
from cellvision.export.onnx import export_onnx
from cellvision.models.build import build_model
from cellvision.types import DataStats

CLASSES = ("background", "live", "dead")


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = build_model(name="unet", kind="viability", in_channels=2, classes=CLASSES, widths=(4, 8))
    # a camera's counts: neither they nor the offset fit into 16 bits of float without loss
    net.set_statistics(DataStats(offset=(20003.0, 101.0), scale=(30001.0, 25013.0), class_pixels=(1, 1, 1)))
    return net.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 65535, (2, 2, 37, 45), generator=torch.Generator().manual_seed(0)).to(torch.uint16)


def test_gives_the_same_results_with_16_bit_weights(unet, images):
    half = to_half(unet)

    assert half.head.weight.dtype == torch.float16
    assert torch.equal(half.normalize.offset, torch.tensor([20003.0, 101.0]))
    assert unet.head.weight.dtype == torch.float32
    with torch.no_grad():
        expected, found = unet(images), half(images)
    for name, values in expected.items():
        assert found[name].dtype == torch.float32
        assert 0 < (found[name] - values).abs().max() < 0.01


def test_exports_as_a_smaller_graph_of_the_same_inputs_and_outputs(unet, images, tmp_path):
    graph = export_onnx(to_half(unet), tmp_path / "half.onnx", input_dtype="uint16")

    weights = [tensor for tensor in onnx.load(graph).graph.initializer if len(tensor.dims) == 4]
    assert weights
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    assert [value.type for value in session.get_outputs()] == ["tensor(float)"] * 2
    with torch.no_grad():
        expected = unet(images)
    found = session.run(list(unet.spec.outputs), {"image": images.numpy()})
    for name, values in zip(unet.spec.outputs, found, strict=True):
        assert (torch.from_numpy(values) - expected[name]).abs().max() < 0.01


def test_refuses_a_net_that_does_not_cast(net):
    with pytest.raises(ExportError, match=r"'tiny' does not run in float16 .* need normalised images cast"):
        to_half(net)


def test_refuses_a_net_whose_results_are_16_bit(unet, monkeypatch):
    monkeypatch.setattr(type(unet), "decode", lambda self, logits: {"probabilities": logits["classes"].half()})
    with pytest.raises(ExportError, match="probabilities comes out as float16"):
        to_half(unet)


def test_refuses_weights_beyond_the_range(unet):
    with torch.no_grad():
        unet.head.bias[0] = 1e5
    try:
        with pytest.raises(ExportError, match=r"head.bias holds values beyond 65504"):
            to_half(unet)
    finally:
        torch.nn.init.zeros_(unet.head.bias)
