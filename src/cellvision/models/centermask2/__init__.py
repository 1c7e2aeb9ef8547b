"""CenterMask2: instance segmentation by FCOS boxes and spatially attended masks."""

from cellvision.models.centermask2.model import CenterMask2 as CenterMask2
