"""Batches that a U-Net cannot be trained on."""

import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.models.build import build_model


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_batch_too_small_for_batch_normalisation_is_explained(norm):
    net = build_model(
        name="unet", kind="semantic", in_channels=1, classes=["background", "cell"], widths=[4, 8], norm=norm
    ).train()
    if norm == "group":
        assert net(torch.zeros(1, 1, 2, 2))["probabilities"].shape == (1, 2, 2, 2)
        return
    with pytest.raises(
        ConfigError, match=r"deepest map is one pixel; need two values or more.*; try: model\.norm=group"
    ):
        net(torch.zeros(1, 1, 2, 2))
