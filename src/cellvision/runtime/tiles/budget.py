"""How much memory predicting takes, measured where it cannot be known: the net's share depends on its graph."""

from __future__ import annotations

import ctypes
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import psutil

from cellvision.bundle import Detecting, Manifest
from cellvision.data.images import ImageInfo
from cellvision.runtime.cell_meter import BAND_PX
from cellvision.runtime.engines.sidecar import load_sidecar
from cellvision.runtime.graphs.detection_session import PartedSession, WholeSession
from cellvision.runtime.pictures.overlay import LARGEST_OVERVIEW_PX
from cellvision.runtime.session import Session, open_bundle
from cellvision.runtime.tiles.tiling import Costs

_FEW_PX, _PROBE_PX, _CELLS_PX = 32, 256, 192
# Of a net that takes no drawn disc for a cell: as much for each cell as 14 x 14 px of 256 maps take some times over.
_CELL_BYTES, _FEWEST_CELLS = 1.5 * 2**20, 16
# Each window has another number of cells, and what one leaves free does not quite fit the next: measured, 1.02.
_GAPS = 1.1
# Memory is taken in ever larger steps: measured, 1.25 and 1.31 times as much per pixel at 768 px as at 256.
_STEPS = 1.3
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
        fixed: for each window whatever its size: the masks that a parted bundle makes at once; else 0.
        per_cell: for each cell that is found in a window, in a whole graph; else 0.
    """

    per_px: float
    fixed: float = 0.0
    per_cell: float = 0.0


# By graphs and provider: a second session of a graph would reuse the heap that the first one left, and seem free.
_measured: dict[tuple[str, ...], NetCosts] = {}
_measuring = Lock()


def measure_net(session: Session) -> NetCosts:
    """The working memory that the graphs take, from runs on small images.

    ONNX Runtime keeps what a run needed for the next one, so the growth of the process is the run's peak; a session
    that does not keep it is measured on one that does. Measured once per bundle and process. Of a parted bundle, a run
    on very few pixels shows the masks of as many boxes as go through the graph at once. A whole graph makes the masks
    of all cells of a window together; what one takes is seen on drawn discs.
    """
    key = (*(graph.sha256 for graph in session.manifest.graphs), session.provider)
    with _measuring:
        if key not in _measured:
            _measured[key] = _measure(session)
        return _measured[key]


def find_window_px(folder: Path, manifest: Manifest) -> tuple[int, float]:
    """Smallest and largest edge in px of the square windows that a bundle's graphs take.

    An engine was built for some sizes only, and where those of the two edges have none in common, the smallest is
    larger than the largest. ONNX graphs take any size.
    """
    smallest, largest = 1, math.inf
    for graph in manifest.graphs:
        profile = {} if graph.engine == "onnx" else load_sidecar(folder / graph.file).profile
        if "image" in profile:  # a graph of masks follows the sizes of its trunk
            smallest, largest = max(profile["image"][0][2:]), min(profile["image"][2][2:])
    return smallest, largest


def remember_costs(session: Session, costs: NetCosts) -> None:
    """Take over what another process has measured of the same bundle."""
    key = (*(graph.sha256 for graph in session.manifest.graphs), session.provider)
    with _measuring:
        _measured.setdefault(key, costs)


def _measure(session: Session) -> NetCosts:
    smallest, largest = find_window_px(session.folder, session.manifest)
    if smallest > largest:  # no square can be shown to it; what an engine takes is mostly the GPU's memory
        return NetCosts(per_px=_count_least_bytes(session.manifest))
    few_px, probe_px = (int(min(max(edge, smallest), largest)) for edge in (_FEW_PX, _PROBE_PX))
    if session.settings.arena != "keep":
        session = open_bundle(session.folder, replace(session.settings, arena="keep", profile_prefix=None))
    process = psutil.Process()
    _trim_heap()
    start = process.memory_info().rss
    fixed = per_cell = 0.0
    if isinstance(session, PartedSession):
        session.probe(few_px)
        fixed = float(max(process.memory_info().rss - start, 0))
    session.probe(probe_px)
    grown = process.memory_info().rss - start
    per_px = max(_STEPS * (grown - fixed) / probe_px**2, _count_least_bytes(session.manifest))
    if isinstance(session, WholeSession):
        cells = session.probe_cells(_CELLS_PX)
        # Masks are made in what the maps before them leave free: all that has grown is theirs but for the pixels' part.
        grown = process.memory_info().rss - start - int(per_px * _CELLS_PX**2)
        seen = max(grown / cells, 4.0 * session.detecting.mask_side**2) if cells >= _FEWEST_CELLS else _CELL_BYTES
        per_cell = _GAPS * seen
    return NetCosts(per_px=per_px, fixed=fixed, per_cell=per_cell)


def _count_least_bytes(manifest: Manifest) -> float:
    """For each pixel, of what goes into a net and, from a net of maps, comes out of it."""
    if manifest.kind == "instance":
        return float(len(manifest.channels) * (np.dtype(manifest.input_dtype).itemsize + 4))
    return 4.0 * (len(manifest.classes) + 1)


def _trim_heap() -> None:
    """Give back what opening the graphs has left free, in which a small run would find room and seem to take none."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # elsewhere it is less exact
        libc.malloc_trim(0)


def compute_costs(
    net: NetCosts,
    *,
    channels: int,
    dtype: str,
    detecting: Detecting | None = None,
    batch: int = 1,
    whole_bytes: int = 0,
    overlay_shape: tuple[int, int] | None = None,
) -> Costs:
    """What predicting one image costs; of cells that the net finds itself, beside the masks that are kept of them.

    Args:
        net: from `measure_net`.
        channels: of the image.
        dtype: of the image.
        detecting: of the manifest.
        batch: windows that are worked on at once.
        whole_bytes: size of an image that can only be decoded whole, else 0.
        overlay_shape: (H, W) of an image whose overlay is drawn, or None.
    """
    fixed = batch * net.fixed + whole_bytes
    if overlay_shape is not None:
        step = -(-max(overlay_shape) // LARGEST_OVERVIEW_PX)
        # Sums, means and stretched planes per channel; the picture, a float plane of it, and what is made of them.
        fixed += overlay_shape[0] * overlay_shape[1] // step**2 * (12 * channels + 28)
    splitting, most_cells = _SPLIT_BYTES, 0
    if detecting is not None:
        most_cells = detecting.max_cells
        # Masks as they come out, and twice again while they are picked; one band is measured at a time.
        fixed += 3 * batch * 4 * detecting.mask_side**2 * most_cells + BAND_PX * _SPLIT_BYTES
        splitting = 0
    image_bytes = channels * np.dtype(dtype).itemsize
    return Costs(
        per_window_px=net.per_px + splitting + image_bytes + 4 * channels,
        per_band_px=2 * image_bytes + _ROW_BYTES,
        fixed=fixed,
        windows=batch,
        per_cell=net.per_cell,
        most_cells=most_cells,
    )


def find_whole_bytes(info: ImageInfo) -> int:
    """Bytes of an image that can only be decoded whole (PNG, JPEG), else 0; told by the file's first bytes."""
    with info.path.open("rb") as stream:
        is_tiff = stream.read(2) in (b"II", b"MM")
    return 0 if is_tiff else math.prod(info.shape) * np.dtype(info.dtype).itemsize
