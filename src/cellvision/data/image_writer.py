"""Samples as image files: OME-TIFF with channel names and pixel size."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import tifffile

from cellvision.bundle import Channel
from cellvision.types import Sample


def write_image(path: Path, sample: Sample, channels: Sequence[Channel]) -> None:
    """Write a sample's image as a compressed OME-TIFF; equal samples give equal bytes.

    Args:
        path: file to write.
        sample: its image (C, H, W), name and pixel size are written.
        channels: of the image, in order.
    """
    # Left to itself tifffile writes a new random UUID each time.
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{sample.group}/{sample.name}")
    metadata: dict[str, object] = {"UUID": str(identity), "Name": sample.name, "axes": "CYX"}
    metadata["Channel"] = {"Name": [channel.name for channel in channels]}
    if sample.pixel_size_um is not None:
        for axis in "XY":
            metadata[f"PhysicalSize{axis}"] = sample.pixel_size_um
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    tifffile.imwrite(
        path, sample.image, ome=True, photometric="minisblack", compression="zlib", metadata=metadata, software=False
    )
