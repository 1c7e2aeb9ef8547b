"""Nets. Importing this package registers every family."""

from cellvision.models import centermask2 as centermask2
from cellvision.models import detectron2 as detectron2
from cellvision.models import swin_unet as swin_unet
from cellvision.models import unet as unet
from cellvision.models.backbones import timm as timm
