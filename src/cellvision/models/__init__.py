"""Nets. Importing this package registers every family."""

from cellvision.models import unet as unet
from cellvision.models.backbones import timm as timm
