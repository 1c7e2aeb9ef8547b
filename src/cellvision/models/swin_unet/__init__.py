"""The Swin-UNet."""

from cellvision.models.swin_unet.model import SwinUNet as SwinUNet
