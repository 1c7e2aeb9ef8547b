import pytest
import torch

from cellvision.models.build import build_model

CLASSES = ("background", "live", "dead")


@pytest.fixture
def net():
    return build_model(name="unet", kind="semantic", in_channels=1, classes=CLASSES, widths=(4, 8)).eval()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_probabilities_are_a_softmax_over_the_classes(net, scale):
    logits = scale * torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = net.decode({"classes": logits})["probabilities"]
    torch.testing.assert_close(found, logits.softmax(1), rtol=1e-5, atol=1e-7)


def test_probabilities_of_half_precision_are_single(net):
    logits = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float16).view(1, 3, 1, 1)
    found = net.decode({"classes": logits})["probabilities"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits.float().softmax(1))


def test_features_follow_the_type_of_the_weights(net):
    half = net.half()
    half.normalize.float()
    features = half.features(torch.full((1, 1, 9, 9), 70000.0))
    assert {maps.dtype for maps in features.values()} == {torch.float16}
