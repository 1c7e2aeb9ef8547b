"""What a request wants of an image, from its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from cellvision.errors import ConfigError, check_choice, explain, unknown_name

ANSWERS = ("cells", "labels", "overlay", "coco")
PARAMETERS = ("answer", "overlay", "channels", "pixel_size_um", "intensity_scale", "name")
_LONGEST_NAME = 120
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to answer, and what the image means.

    Attributes:
        answer: "cells" (JSON), "labels" (TIFF), "overlay" (PNG) or "coco" (JSON).
        overlay: whether "cells" holds the overlay too.
        channels: names of the image's channels in order, or None for those in the file.
        pixel_size_um: edge of a pixel, or None for that in the file.
        intensity_scale: factor from the image's counts to the training counts, or None for equal units.
        name: what the image is called; "" where the request does not say.
    """

    answer: str = "cells"
    overlay: bool = False
    channels: tuple[str, ...] | None = None
    pixel_size_um: float | None = None
    intensity_scale: float | None = None
    name: str = ""


def read_asked(parameters: Mapping[str, str]) -> Asked:
    """What these parameters ask for.

    Raises:
        ConfigError: an unknown parameter or answer, or a value that is no number.

    Example:
        >>> read_asked({"answer": "coco", "channels": "hoechst,pi"}).channels
        ('hoechst', 'pi')
    """
    if unknown := [key for key in parameters if key not in PARAMETERS]:
        raise ConfigError(unknown_name("parameter", unknown[0], PARAMETERS))
    answer, channels = parameters.get("answer", "cells"), parameters.get("channels")
    check_choice("answer", answer, ANSWERS)
    overlay = parameters.get("overlay", "false").lower()
    check_choice("overlay", overlay, _TRUTH)
    return Asked(
        answer=answer,
        overlay=_TRUTH[overlay],
        channels=tuple(name.strip() for name in channels.split(",")) if channels else None,
        pixel_size_um=_read_number(parameters, "pixel_size_um"),
        intensity_scale=_read_number(parameters, "intensity_scale"),
        name=to_name(parameters.get("name", "")),
    )


def to_name(text: str) -> str:
    r"""A file name that is safe to print and to give back: without folders and without what is not printable.

    Example:
        >>> to_name("C:\\plates\\A1\n.tif")
        'A1_.tif'
    """
    last = PureWindowsPath(PurePosixPath(text).name).name
    return "".join(c if c.isprintable() and c not in '"\\' else "_" for c in last)[-_LONGEST_NAME:]


def _read_number(parameters: Mapping[str, str], key: str) -> float | None:
    text = parameters.get(key)
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(explain(got=f"{key}={text[:50]!r}", need="a number", hint=f"{key}=0.65")) from None
