"""CenterMask2: instance segmentation by FCOS boxes and spatially attended masks."""

from cellvision.models.centermask2.model import CenterMask2
from cellvision.models.centermask2.settings import NetSettings
from cellvision.models.centermask2.weights.pretrained import load_pretrained

__all__ = ["CenterMask2", "NetSettings", "load_pretrained"]
