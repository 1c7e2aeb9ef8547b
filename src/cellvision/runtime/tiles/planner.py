"""Which tiles an image is worked on in: those that suit the bundle and fit the memory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cellvision.bundle import LARGEST_SIZE
from cellvision.errors import ConfigError, ShapeError, explain
from cellvision.runtime.graphs.inputs import check_pixel_size, match_input
from cellvision.runtime.session import Session
from cellvision.runtime.tiles.budget import NetCosts, compute_costs
from cellvision.runtime.tiles.image_job import ImageJob, Progress, ReadRows
from cellvision.runtime.tiles.tiling import SMALLEST_TILE_PX, Costs, choose_tile_px, round_up


class JobPlanner:
    """Turns images into jobs for one bundle.

    Attributes:
        largest_window_px: edge of the largest window that a graph is shown.
    """

    def __init__(
        self,
        session: Session,
        net: NetCosts,
        *,
        memory_mib: int = 1024,
        tile_px: int | None = None,
        overlap_px: int | None = None,
        batch: int = 1,
    ) -> None:
        """Plan for a bundle whose graphs cost ``net``; for the other arguments see Predictor."""
        manifest = session.manifest
        self._session = session
        self._net = net
        self._memory_mib = memory_mib
        self._batch = batch
        self._said: set[str] = set()
        self._overlap_px = round_up(overlap_px or manifest.overlap_px, manifest.stride)
        self._largest_px = round_up(tile_px or manifest.tile_px, manifest.stride)
        self._smallest_px = self._largest_px if tile_px else round_up(SMALLEST_TILE_PX, manifest.stride)
        self.largest_window_px = self._largest_px + 2 * self._overlap_px

    def plan(
        self,
        read_rows: ReadRows,
        *,
        name: str,
        shape: tuple[int, int, int],
        dtype: str,
        channel_names: tuple[str, ...] | None,
        intensity_scale: float | None,
        pixel_size_um: float | None,
        progress: Progress | None,
        whole_bytes: int = 0,
        overlay: bool = False,
    ) -> ImageJob:
        """The work on one image.

        Args:
            read_rows: gives the image's rows.
            name: of the image, for error texts.
            shape: (C, H, W) of the image.
            dtype: of the image.
            channel_names: of the image, or None; see `match_input`.
            intensity_scale: factor from the image's counts to the training counts, or None.
            pixel_size_um: of the image, or None.
            progress: told after each tile.
            whole_bytes: size of an image that can only be decoded whole, else 0.
            overlay: whether a picture is drawn.

        Raises:
            BundleError: dtype or channels do not suit the bundle.
            ConfigError: a number is out of its range, or the memory does not suffice.
        """
        check_pixel_size(pixel_size_um)
        match = match_input(
            self._session.manifest,
            name=name,
            dtype=dtype,
            channels=shape[0],
            channel_names=channel_names,
            intensity_scale=intensity_scale,
        )
        job = ImageJob(
            read_rows=read_rows,
            shape=shape[1:],
            match=match,
            tile_px=self._largest_px,
            overlap_px=self._overlap_px,
            batch=self._batch,
            pixel_size_um=pixel_size_um,
            progress=progress,
        )
        return self._shrink_tiles(job, self._compute_costs(shape, dtype, whole_bytes, overlay))

    def _compute_costs(self, shape: tuple[int, int, int], dtype: str, whole_bytes: int, overlay: bool) -> Costs:
        return compute_costs(
            self._net,
            channels=shape[0],
            dtype=dtype,
            detecting=self._session.manifest.detecting,
            batch=self._batch,
            whole_bytes=whole_bytes,
            overlay_shape=shape[1:] if overlay else None,
        )

    def _shrink_tiles(self, job: ImageJob, costs: Costs) -> ImageJob:
        """The job with tiles that fit the memory, and a note where that makes them more; the same note once only."""
        tile_px = choose_tile_px(
            job.shape,
            largest_px=self._largest_px,
            smallest_px=self._smallest_px,
            stride=self._session.manifest.stride,
            overlap_px=self._overlap_px,
            costs=costs,
            memory_mib=self._memory_mib,
        )
        smaller = replace(job, tile_px=tile_px)
        if smaller.tiles == job.tiles:
            return smaller
        enough = costs.compute_total(job.shape, tile_px=job.tile_px, overlap_px=job.overlap_px) / 2**20
        note = (
            f"{smaller.tiles} tiles of {tile_px} px keep within memory_mib={self._memory_mib}; "
            f"memory_mib={math.ceil(enough)} allows {job.tiles} of {job.tile_px} px, which is faster"
        )
        if note in self._said:
            return smaller
        self._said.add(note)
        return replace(smaller, notes=(note,))


def to_planes(image: np.ndarray) -> np.ndarray:
    """An image in memory as (C, H, W).

    Raises:
        ShapeError: it is neither (H, W) nor (C, H, W), or empty.
    """
    planes = image[None] if image.ndim == 2 else image
    if planes.ndim != 3 or 0 in planes.shape:
        raise ShapeError(
            explain(
                got=f"an image of shape {image.shape}",
                need="(height, width) or (channels, height, width), at least 1x1 px",
                hint="image[None] adds a channel axis",
            )
        )
    return planes


def check_sizes(**sizes: int | None) -> None:
    """Raise ConfigError unless each number is left out (None) or from 1 to LARGEST_SIZE."""
    for name, value in sizes.items():
        if value is not None and not 1 <= value <= LARGEST_SIZE:
            need = f"a whole number from 1 to {LARGEST_SIZE}"
            raise ConfigError(explain(got=f"{name}={value}", need=need, hint="leave it out"))
