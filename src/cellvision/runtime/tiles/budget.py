"""How much memory predicting takes, measured where it cannot be known: the net's share depends on its graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import psutil

from cellvision.bundle import Detecting
from cellvision.data.images import ImageInfo
from cellvision.runtime.cell_meter import BAND_PX
from cellvision.runtime.graphs.detection_session import WholeSession
from cellvision.runtime.graphs.map_session import MapSession
from cellvision.runtime.pictures.overlay import LARGEST_OVERVIEW_PX
from cellvision.runtime.session import Session, open_bundle
from cellvision.runtime.tiles.tiling import Costs

_WARM_UP_PX, _PROBE_PX, _CELLS_PX = 32, 256, 192
# Of a net that takes no drawn disc for a cell: as much for each cell as 14 x 14 px of 256 maps take some times over.
_CELL_BYTES, _FEWEST_CELLS = 1.5 * 2**20, 16
# Each window has another number of cells, and what one leaves free does not quite fit the next: measured, 1.2.
_GAPS = 1.25
# Working memory of splitting and measuring one window, per pixel, beside the net's own: label images, the flooding
# queue, copies of image and maps. Measured on three channels: 25, 31 and 67 where a tenth, half and all is cells.
_SPLIT_BYTES = 72
# Full-width rows: provisional and final labels, and what writing and drawing them takes.
_ROW_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class NetCosts:
    """Working memory of a bundle's graphs, in bytes.

    Attributes:
        per_px: for each pixel of a window.
        fixed: for each window whatever its size: candidates, and the masks that are made at once. 0 for graphs of maps.
        per_cell: for each cell that is found in a window; 0 where masks are made for a fixed number at once.
    """

    per_px: float
    fixed: float
    per_cell: float = 0.0


# By graphs and provider: a second session of a graph would reuse the heap that the first one left, and seem free.
_measured: dict[tuple[str, ...], NetCosts] = {}
_measuring = Lock()


def measure_net(session: Session) -> NetCosts:
    """The working memory that the graphs take, from runs on images of two sizes.

    ONNX Runtime keeps what a run needed for the next one, so the growth of the process is the run's peak; a session
    that does not keep it is measured on one that does. Measured once per bundle and process. Of graphs of maps, the
    first small run takes what does not depend on the image; it is held from then on and counts no more. In graphs that
    find cells it does count, as do masks for as many boxes as go through the graph at once: in a parted bundle they are
    a fixed number, a whole graph makes those of all cells of a window together, and what one takes is seen on drawn
    discs.
    """
    key = (*(graph.sha256 for graph in session.manifest.graphs), session.provider)
    with _measuring:
        if key not in _measured:
            _measured[key] = _measure(session)
        return _measured[key]


def remember_costs(session: Session, costs: NetCosts) -> None:
    """Take over what another process has measured of the same bundle."""
    key = (*(graph.sha256 for graph in session.manifest.graphs), session.provider)
    with _measuring:
        _measured.setdefault(key, costs)


def _measure(session: Session) -> NetCosts:
    if session.settings.arena != "keep":
        session = open_bundle(session.folder, replace(session.settings, arena="keep", profile_prefix=None))
    process = psutil.Process()
    held = [process.memory_info().rss]
    for edge in (_WARM_UP_PX, _PROBE_PX):
        session.probe(edge)
        held.append(process.memory_info().rss)
    per_px = max(held[2] - held[1], 0) / _PROBE_PX**2
    if isinstance(session, MapSession):
        outputs = 4 * (len(session.manifest.classes) + 1)  # what comes out must have been somewhere
        return NetCosts(per_px=max(per_px, float(outputs)), fixed=0.0)
    inputs = len(session.manifest.channels) * (np.dtype(session.manifest.input_dtype).itemsize + 4)
    per_cell = 0.0
    if isinstance(session, WholeSession):
        cells = session.probe_cells(_CELLS_PX)
        # All that has grown since the first run, though much of it is the maps' and counted with the pixels.
        grown = process.memory_info().rss - held[1]
        seen = max(grown / cells, 4.0 * session.detecting.mask_side**2) if cells >= _FEWEST_CELLS else _CELL_BYTES
        per_cell = _GAPS * seen
    return NetCosts(per_px=max(per_px, float(inputs)), fixed=float(max(held[1] - held[0], 0)), per_cell=per_cell)


def compute_detection_costs(
    net: NetCosts,
    *,
    detecting: Detecting,
    channels: int,
    dtype: str,
    batch: int = 1,
    whole_bytes: int = 0,
    overlay_shape: tuple[int, int] | None = None,
) -> Costs:
    """What finding the cells of one image costs, beside its label image and the masks of its cells.

    Args:
        net: from `measure_net`.
        detecting: of the manifest.
        channels: of the image.
        dtype: of the image.
        batch: windows that are worked on at once.
        whole_bytes: size of an image that can only be decoded whole, else 0.
        overlay_shape: (H, W) of an image whose overlay is drawn, or None.
    """
    costs = compute_costs(
        net.per_px, channels=channels, dtype=dtype, whole_bytes=whole_bytes, overlay_shape=overlay_shape
    )
    masks = 4 * detecting.mask_side**2 * detecting.max_cells
    return replace(
        costs,
        per_window_px=costs.per_window_px - _SPLIT_BYTES,
        # Masks as they come out, and twice again while they are picked; one band is measured at a time.
        fixed=costs.fixed + batch * (net.fixed + 3 * masks) + BAND_PX * _SPLIT_BYTES,
        windows=batch,
        per_cell=net.per_cell,
        most_cells=detecting.max_cells,
    )


def compute_costs(
    net_bytes: float,
    *,
    channels: int,
    dtype: str,
    batch: int = 1,
    whole_bytes: int = 0,
    overlay_shape: tuple[int, int] | None = None,
) -> Costs:
    """What predicting one image from maps costs.

    Args:
        net_bytes: per pixel, from `measure_net`.
        channels: of the image.
        dtype: of the image.
        batch: windows that are worked on at once.
        whole_bytes: size of an image that can only be decoded whole, else 0.
        overlay_shape: (H, W) of an image whose overlay is drawn, or None.
    """
    picture = 0
    if overlay_shape is not None:
        step = -(-max(overlay_shape) // LARGEST_OVERVIEW_PX)
        # Sums, means and stretched planes per channel; the picture, a float plane of it, and what is made of them.
        picture = overlay_shape[0] * overlay_shape[1] // step**2 * (12 * channels + 28)
    image_bytes = channels * np.dtype(dtype).itemsize
    return Costs(
        per_window_px=net_bytes + _SPLIT_BYTES + image_bytes + 4 * channels,
        per_band_px=2 * image_bytes + _ROW_BYTES,
        fixed=whole_bytes + picture,
        windows=batch,
    )


def find_whole_bytes(info: ImageInfo) -> int:
    """Bytes of an image that can only be decoded whole (PNG, JPEG), else 0; told by the file's first bytes."""
    with info.path.open("rb") as stream:
        is_tiff = stream.read(2) in (b"II", b"MM")
    return 0 if is_tiff else math.prod(info.shape) * np.dtype(info.dtype).itemsize
