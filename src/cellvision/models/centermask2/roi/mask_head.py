"""The layers that draw a cell's mask from what the pyramid holds inside its box."""

from __future__ import annotations

from torch import Tensor, nn

from cellvision.models.backbones.blocks import Concatenate, Multiply


class SpatialAttention(nn.Module):
    """Every pixel weighted between 0 and 1 by mean and maximum over its channels and those of its neighbours.

    The spatial half of CBAM (Woo et al. 2018) with a 3 px convolution, as in CenterMask (Lee and Park 2020).
    """

    def __init__(self) -> None:
        super().__init__()
        self.concatenate = Concatenate()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.sigmoid = nn.Sigmoid()
        self.multiply = Multiply()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """(R, C, H, W) of the same shape."""
        summary = self.concatenate([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)])
        return self.multiply(maps, self.sigmoid(self.conv(summary)))


class MaskHead(nn.Module):
    """Mask logits of every class at twice the side of the pooled features.

    CenterMask's spatial attention-guided mask branch; without the attention it is that of Mask R-CNN (He et al. 2017).
    """

    def __init__(
        self, *, in_channels: int, width: int, class_count: int, conv_count: int = 4, attention: bool = True
    ) -> None:
        """Build the layers.

        Args:
            in_channels: of the pyramid.
            width: channels inside; 256, in the lite nets 128.
            class_count: K, cell classes; 1 draws one mask for whatever class.
            conv_count: 3 x 3 convolutions before the attention; 2 in the lite nets.
            attention: weigh pixels before the mask is drawn.
        """
        super().__init__()
        self.conv_count = conv_count
        self.relus = nn.ModuleList(nn.ReLU(inplace=True) for _ in range(conv_count))
        for index in range(conv_count):
            conv = nn.Conv2d(in_channels if index == 0 else width, width, 3, padding=1)
            self.add_module(f"mask_fcn{index + 1}", conv)
        self.spatialAtt = SpatialAttention() if attention else nn.Identity()
        self.deconv_relu = nn.ReLU(inplace=True)
        self.deconv = nn.ConvTranspose2d(width if conv_count else in_channels, width, 2, stride=2)
        self.predictor = nn.Conv2d(width, class_count, 1)
        for layer in self.children():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.predictor.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        """(R, K, 2 S, 2 S) mask logits of (R, C, S, S) pooled features."""
        maps = features
        for index in range(self.conv_count):
            maps = self.relus[index](self.get_submodule(f"mask_fcn{index + 1}")(maps))
        return self.predictor(self.deconv_relu(self.deconv(self.spatialAtt(maps))))


def choose_class(maps: Tensor, classes: Tensor) -> Tensor:
    """(R, 1, H, W) of (R, K, H, W): the channel of each region's class, (R,) int64 in 0..K-1, or the only one."""
    if maps.shape[1] == 1:
        return maps
    height, width = maps.shape[2:]  # gather and not take_along_dim, which exporters refuse for unknown R
    return maps.gather(1, classes.view(-1, 1, 1, 1).expand(-1, 1, height, width))
