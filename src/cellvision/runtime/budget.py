"""How much memory predicting takes, measured where it cannot be known: the net's share depends on its graph."""

from __future__ import annotations

import math

import numpy as np
import psutil

from cellvision.data.images import ImageInfo
from cellvision.runtime.overlay import LARGEST_OVERVIEW_PX
from cellvision.runtime.session import Session
from cellvision.runtime.tiling import Costs

_WARM_UP_PX, _PROBE_PX = 32, 256
# Working memory of splitting and measuring one window, per pixel, beside the net's own: label images, the flooding
# queue, copies of image and maps. Measured on three channels: 25, 31 and 67 where a tenth, half and all is cells.
_SPLIT_BYTES = 72
# Full-width rows: provisional and final labels, and what writing and drawing them takes.
_ROW_BYTES = 16


# By graph and provider: a second session of a graph would reuse the heap that the first one left, and seem free.
_measured: dict[tuple[str, str], float] = {}


def measure_net(session: Session) -> float:
    """Bytes of working memory that the graph takes per pixel of a window, from runs on black images.

    ONNX Runtime keeps what a run needed for the next one, so the growth of the process is the run's peak. The first
    small run takes the memory that does not depend on the image. Measured once per graph and process.
    """
    key = (session.manifest.graphs[0].sha256, session.provider)
    if key not in _measured:
        process = psutil.Process()
        held = []
        for edge in (_WARM_UP_PX, _PROBE_PX):
            session.run(np.zeros((len(session.manifest.channels), edge, edge), session.manifest.input_dtype))
            held.append(process.memory_info().rss)
        outputs = 4 * (len(session.manifest.classes) + 1)  # what comes out must have been somewhere
        _measured[key] = max((held[1] - held[0]) / _PROBE_PX**2, float(outputs))
    return _measured[key]


def compute_costs(
    net_bytes: float, *, channels: int, dtype: str, whole_bytes: int = 0, overlay_shape: tuple[int, int] | None = None
) -> Costs:
    """What predicting one image costs.

    Args:
        net_bytes: per pixel, from `measure_net`.
        channels: of the image.
        dtype: of the image.
        whole_bytes: size of an image that can only be decoded whole, else 0.
        overlay_shape: (H, W) of an image whose overlay is drawn, or None.
    """
    picture = 0
    if overlay_shape is not None:
        step = -(-max(overlay_shape) // LARGEST_OVERVIEW_PX)
        # Sums and stretched planes per channel, the picture twice, and its float rows.
        picture = overlay_shape[0] * overlay_shape[1] // step**2 * (8 * channels + 16)
    image_bytes = channels * np.dtype(dtype).itemsize
    return Costs(
        per_window_px=net_bytes + _SPLIT_BYTES + image_bytes + 4 * channels,
        per_band_px=2 * image_bytes + _ROW_BYTES,
        fixed=whole_bytes + picture,
    )


def find_whole_bytes(info: ImageInfo) -> int:
    """Bytes of an image that can only be decoded whole (PNG, JPEG), else 0; told by the file's first bytes."""
    with info.path.open("rb") as stream:
        is_tiff = stream.read(2) in (b"II", b"MM")
    return 0 if is_tiff else math.prod(info.shape) * np.dtype(info.dtype).itemsize
