"""A CenterMask2 that is built and exported in seconds; arguments of ``build_model``."""

from types import MappingProxyType

DETECTOR = MappingProxyType(
    {
        "name": "centermask2",
        "backbone": "vovnet19_slim_dw",
        "levels": [3, 4],
        "roi_levels": [3, 4],
        "top_levels": 0,
        "fpn_channels": 32,
        "class_convs": 1,
        "box_convs": 1,
        "mask_convs": 1,
        "mask_iou": False,
        "assigning": {"sizes_of_interest": [32]},
    }
)
