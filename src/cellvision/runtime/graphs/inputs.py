"""Whether an image suits a bundle, and how its counts become the graph's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellvision.bundle import PIXEL_SIZES, Manifest, is_pixel_size
from cellvision.errors import BundleError, ConfigError, DataError, explain

INTENSITY_SCALES = "a factor from 1e-9 to 1e9"


@dataclass(frozen=True, kw_only=True)
class InputMatch:
    """How to turn an image's counts into the graph's input.

    Attributes:
        order: for each channel of the graph, the image's channel.
        dtype: of the graph's input.
        intensity_scale: factor from the image's counts to the training counts, or None for equal units.
    """

    order: tuple[int, ...]
    dtype: str
    intensity_scale: float | None

    def pick_channels(self, image: np.ndarray) -> np.ndarray:
        """The graph's channels of an image (C, H, W), counts unchanged; a view where nothing moves."""
        return image if self.order == tuple(range(len(image))) else image[list(self.order)]

    def to_input(self, image: np.ndarray) -> np.ndarray:
        """What the graph reads, from what `pick_channels` gave.

        Raises:
            DataError: the image holds NaN or infinity, or intensity_scale makes a count infinite, or one that an input
                of integers does not hold: nothing is cut.
        """
        scale = self.intensity_scale
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = image if scale is None else image.astype(np.float32) * np.float32(scale)
        if scaled.dtype.kind == "f" and not np.isfinite(scaled).all():
            by = "" if scale is None else f" at intensity_scale={scale:g}"
            got = f"an image with NaN or infinite values{by}"
            raise DataError(explain(got=got, need="finite counts", hint="replace them first, or a smaller factor"))
        if scale is None:
            return image.astype(self.dtype, copy=False)
        if np.dtype(self.dtype).kind == "f":
            return scaled.astype(self.dtype, copy=False)
        rounded, most = np.rint(scaled), np.iinfo(self.dtype).max
        beyond = (rounded < 0) | (rounded > most)
        if beyond.any():
            got = f"a count of {scaled[beyond][0]:g} at intensity_scale={scale:g}"
            hint = "another factor, or a bundle of export.py with input_dtype=float32"
            raise DataError(explain(got=got, need=f"0 to {most}, which the bundle's {self.dtype} holds", hint=hint))
        return rounded.astype(self.dtype)


def match_input(
    manifest: Manifest,
    *,
    name: str,
    dtype: str,
    channels: int,
    channel_names: tuple[str, ...] | None = None,
    intensity_scale: float | None = None,
) -> InputMatch:
    """How an image fits a bundle, or an error that says why it does not.

    Args:
        manifest: of the bundle.
        name: of the image, for error texts.
        dtype: of the image, e.g. "uint16".
        channels: of the image.
        channel_names: of the image; where given, the bundle's channels are found by name, in any order and among
            others; None takes the image's channels as they come.
        intensity_scale: factor from the image's counts to the training counts, e.g. 257 for 8-bit images and a bundle
            trained on 16-bit ones; None for images whose dtype says that the units are equal.

    Raises:
        BundleError: the image's dtype, number of channels or channel names do not suit the bundle.
        ConfigError: intensity_scale is not one of INTENSITY_SCALES, or there are not as many names as channels.
    """
    if intensity_scale is not None and not 1e-9 <= intensity_scale <= 1e9:
        raise ConfigError(
            explain(got=f"intensity_scale={intensity_scale}", need=INTENSITY_SCALES, hint="intensity_scale=257")
        )
    _check_dtype(manifest, name, dtype, intensity_scale)
    order = _order_channels(manifest, name, channels, channel_names)
    return InputMatch(order=order, dtype=manifest.input_dtype, intensity_scale=intensity_scale)


def check_pixel_size(pixel_size_um: float | None) -> None:
    """Raise ConfigError unless the edge of a pixel is unknown (None) or one of PIXEL_SIZES."""
    if pixel_size_um is not None and not is_pixel_size(pixel_size_um):
        got = f"pixel_size_um={pixel_size_um}"
        raise ConfigError(explain(got=got, need=PIXEL_SIZES, hint="leave it out if unknown"))


def _check_dtype(manifest: Manifest, name: str, dtype: str, intensity_scale: float | None) -> None:
    if dtype not in ("uint8", "uint16", "float32"):
        raise BundleError(
            explain(
                got=f"{name} is {dtype}",
                need="uint8, uint16 or float32",
                hint="read it with cellvision.data.images.read_image",
            )
        )
    if intensity_scale is not None:
        return
    if dtype not in manifest.image_dtypes:
        raise BundleError(
            explain(
                got=f"{name} is {dtype}, whose counts mean something else than the training counts",
                need=f"{' or '.join(manifest.image_dtypes)}",
                hint="--intensity-scale F, the factor to the training counts (257 from 8 to 16 bits)",
            )
        )
    if not np.can_cast(dtype, manifest.input_dtype):
        raise BundleError(
            explain(
                got=f"{name} is {dtype} and the graph reads {manifest.input_dtype}",
                need="counts that fit it without loss",
                hint="--intensity-scale 1 to round them, or export with input_dtype=float32",
            )
        )


def _order_channels(manifest: Manifest, name: str, channels: int, names: tuple[str, ...] | None) -> tuple[int, ...]:
    wanted = [channel.name for channel in manifest.channels]
    if names is None:
        if channels != len(wanted):
            raise BundleError(
                explain(
                    got=f"{name} has {channels} channels",
                    need=f"{len(wanted)}: {', '.join(wanted)}",
                    hint="--channels with the names of the image's channels in order",
                )
            )
        return tuple(range(channels))
    if len(names) != channels:
        raise ConfigError(
            explain(
                got=f"{len(names)} channel names ({', '.join(names)}) for {name} of {channels} channels",
                need="one name per channel",
                hint="--channels with the names of the image's channels in order",
            )
        )
    if missing := [channel for channel in wanted if names.count(channel) != 1]:
        raise BundleError(
            explain(
                got=f"{name} has the channels {', '.join(names)}",
                need=f"{', '.join(missing)} once among them",
                hint="--channels with the names of the image's channels in order",
            )
        )
    return tuple(names.index(channel) for channel in wanted)
