"""The cells of one image from a bundle of maps: in memory, or streamed to files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cellvision.runtime.cells import Cells, build_cells, index_classes
from cellvision.runtime.files.names import name_labels, write_overview
from cellvision.runtime.files.writers import LabelSpool, StagedFiles, write_label_image
from cellvision.runtime.graphs.map_session import MapSession
from cellvision.runtime.maps.splitting import CellSums
from cellvision.runtime.maps.tile_run import KeepMaps, TileRun
from cellvision.runtime.pictures.overlay import Overview
from cellvision.runtime.tiles.image_job import ImageJob


def predict_map_cells(session: MapSession, job: ImageJob, *, keep_maps: KeepMaps | None = None) -> Cells:
    """The cells of an image with their label image; ``keep_maps`` is told the probabilities of each tile."""
    run = TileRun(session, job)
    ids = np.concatenate([band.ids for band in run.iterate_bands(keep_maps=keep_maps)])
    table, sums = run.resolve()
    return _build(session, job, sums, table[ids])


def stream_map_cells(session: MapSession, job: ImageJob, target: Path, *, overlay: bool) -> Cells:
    """Write label image and overlay, whose names begin with ``target``; the cells without label image."""
    with StagedFiles(target.parent) as staged, LabelSpool(target.parent) as spool:
        overview = Overview(shape=job.shape, channels=session.manifest.channels) if overlay else None
        run = TileRun(session, job)
        for band in run.iterate_bands():
            spool.add(band.ids)
            if overview:
                overview.add_image(band.top, band.image)
        table, sums = run.resolve()
        cells = _build(session, job, sums, None)
        write_label_image(
            staged.path(name_labels(target)),
            _iterate_final(spool, table, overview, index_classes(cells)),
            shape=job.shape,
            largest=len(cells),
            pixel_size_um=job.pixel_size_um,
        )
        if overview:
            write_overview(overview, cells, staged, target)
    return cells


def _build(session: MapSession, job: ImageJob, sums: CellSums, label_image: np.ndarray | None) -> Cells:
    manifest = session.manifest
    cells = build_cells(
        sums,
        classes=manifest.classes,
        channels=tuple(channel.name for channel in manifest.channels),
        kind=manifest.kind,
        live_threshold=manifest.live_threshold,
        shape=job.shape,
        label_image=label_image,
        pixel_size_um=job.pixel_size_um,
    )
    return replace(cells, tiles=job.tiles, notes=job.notes)


def _iterate_final(
    spool: LabelSpool, table: np.ndarray, overview: Overview | None, class_of_label: np.ndarray
) -> Iterator[np.ndarray]:
    """Bands with their final labels, drawn into the overview as they pass."""
    top = 0
    for ids in spool.iterate_rows():
        rows = table[ids]
        if overview:
            overview.add_labels(top, rows, class_of_label)
        top += len(rows)
        yield rows
