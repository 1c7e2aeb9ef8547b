"""Channel names and pixel size from what TIFF files say about themselves: OME-XML, ImageJ's notes, resolution tags."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

LARGEST_PIXEL_UM = 10.0
"""Coarser pixels than a 1x objective gives are print resolutions (72 to 1200 dots per inch), not measurements."""

_SMALLEST_PIXEL_UM = 1e-4
_UM_PER_UNIT = {
    "um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "inches": 25400.0,
}  # fmt: skip
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}
_SAME_SIZE = 0.01


def read_channel_names(tiff: Any, channels: int) -> tuple[str, ...] | None:
    """Names of all ``channels`` from OME-XML, or None where there are not that many."""
    if (pixels := _find_pixels(tiff)) is None:
        return None
    names = tuple(c.get("Name", "").strip() for c in pixels if c.tag.endswith("}Channel"))
    return names if len(names) == channels and all(names) else None


def read_pixel_size_um(tiff: Any, page: Any) -> float | None:
    """Pixel edge from OME-XML, else from the resolution tags with ImageJ's unit, else with the tag's own unit."""
    if (pixels := _find_pixels(tiff)) is not None:
        sizes = [_to_um(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit", "um")) for a in "XY"]
        return _agree(*sizes)
    unit = str((tiff.imagej_metadata or {}).get("unit", "")) or _RESOLUTION_UNITS.get(int(page.resolutionunit), "")
    # ImageJ writes the micro sign as an escape.
    unit = unit.replace("\\u00B5", "\u00b5").strip().lower()
    return _agree(*(_to_um(_invert(page.tags.valueof(tag)), unit) for tag in (282, 283)))


def _find_pixels(tiff: Any) -> ElementTree.Element | None:
    if not tiff.is_ome:
        return None
    root = ElementTree.fromstring(tiff.ome_metadata)  # noqa: S314  (expat itself stops entity bombs)
    return next((element for element in root.iter() if element.tag.endswith("}Pixels")), None)


def _invert(resolution: Any) -> float | None:
    """Units per pixel of a rational tag (pixels, units)."""
    if not isinstance(resolution, tuple) or not all(resolution):
        return None
    return resolution[1] / resolution[0]


def _to_um(size: Any, unit: str) -> float | None:
    try:
        size_um = float(size) * _UM_PER_UNIT[unit]
    except (TypeError, ValueError, KeyError):
        return None
    return size_um if _SMALLEST_PIXEL_UM <= size_um <= LARGEST_PIXEL_UM else None


def _agree(x: float | None, y: float | None) -> float | None:
    if x is None or y is None:
        return x if y is None else y
    return x if math.isclose(x, y, rel_tol=_SAME_SIZE) else None
