"""How much memory predicting takes, measured where it cannot be known: the net's share depends on its graph."""

from __future__ import annotations

import numpy as np
import psutil

from cellvision.runtime.overlay import LARGEST_OVERVIEW_PX
from cellvision.runtime.session import Session
from cellvision.runtime.tiling import Costs

_WARM_UP_PX, _PROBE_PX = 32, 256
# Working memory of splitting and measuring one window, per pixel, beside the net's own: label images, the flooding
# queue, and copies of image and maps. Measured at 32 to 60 on windows half full of cells.
_SPLIT_BYTES = 64
# Full-width rows: provisional and final labels, and what writing and drawing them takes.
_ROW_BYTES = 16


def measure_net(session: Session) -> float:
    """Bytes of working memory that the graph takes per pixel of a window, from runs on black images.

    ONNX Runtime keeps what a run needed for the next one, so the growth of the process is the run's peak. The first
    small run takes the memory that does not depend on the image.
    """
    process = psutil.Process()
    held = []
    for edge in (_WARM_UP_PX, _PROBE_PX):
        session.run(np.zeros((len(session.manifest.channels), edge, edge), session.manifest.input_dtype))
        held.append(process.memory_info().rss)
    return float(max(held[1] - held[0], 0) / _PROBE_PX**2)


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
