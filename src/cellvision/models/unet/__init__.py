"""The U-Net family."""

from cellvision.models.unet.model import UNet as UNet
