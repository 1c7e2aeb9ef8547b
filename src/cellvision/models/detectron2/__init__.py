"""The bridge to detectron2: our CenterMask2 inside detectron2, and detectron2's nets inside this library.

detectron2 is not a dependency: it is imported when one of these is used, and then said to be missing if it is.
"""

from cellvision.models.detectron2.register import add_centermask_config, build_centermask, register
from cellvision.models.detectron2.wrap import Detectron2Net

__all__ = ["Detectron2Net", "add_centermask_config", "build_centermask", "register"]
