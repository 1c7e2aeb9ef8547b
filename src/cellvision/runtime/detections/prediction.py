"""The cells of one image from a bundle that finds cells itself: in memory, or streamed to files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cellvision.bundle import Manifest
from cellvision.runtime.cell_meter import CellMeter
from cellvision.runtime.cells import Cells, tells_viability
from cellvision.runtime.detections.cells import build_painted_cells, choose_detected_classes
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.joining import DetectionPile, JoinedDetections
from cellvision.runtime.detections.masks import paint_in_order
from cellvision.runtime.files.mapped_labels import MappedLabels
from cellvision.runtime.files.names import name_labels, write_overview
from cellvision.runtime.files.writers import StagedFiles, write_label_image
from cellvision.runtime.graphs.detection_session import DetectionSession
from cellvision.runtime.maps.splitting import CellSums
from cellvision.runtime.pictures.overlay import Overview
from cellvision.runtime.tiles.image_job import ImageJob


def find_detections(session: DetectionSession, job: ImageJob) -> Detections:
    """What the net finds in an image, overlaps included, boxes in px of the image; the order means nothing.

    From several tiles: without what two tiles found, see `JoinedDetections.drop_doubles`.
    """
    joined, _ = _run_tiles(session, job, least_score=0.0)
    return joined.detections if job.tiles == 1 else joined.drop_doubles(nms_iou=session.detecting.nms_iou)


def predict_detected_cells(session: DetectionSession, job: ImageJob) -> Cells:
    """The cells of an image with their label image."""
    manifest = session.manifest
    joined, notes = _run_tiles(session, job, least_score=manifest.splitting.score_threshold)
    label_image = np.zeros(job.shape, np.int32)
    found = _paint(label_image, joined, manifest)
    meter = CellMeter(count=len(found), width=job.shape[1])
    for top, image in job.iterate_bands():
        meter.add(top, label_image[top : top + image.shape[1]], image)
    return _build(manifest, job, found, meter.resolve(), notes, label_image)


def stream_detected_cells(session: DetectionSession, job: ImageJob, target: Path, *, overlay: bool) -> Cells:
    """Write label image and overlay, whose names begin with ``target``; the cells without label image."""
    manifest = session.manifest
    with StagedFiles(target.parent) as staged, MappedLabels(target.parent, job.shape) as labels:
        joined, notes = _run_tiles(session, job, least_score=manifest.splitting.score_threshold)
        found = _paint(labels.array, joined, manifest)
        del joined  # the masks are painted
        meter = CellMeter(count=len(found), width=job.shape[1])
        overview = Overview(shape=job.shape, channels=manifest.channels) if overlay else None
        classes = choose_detected_classes(found, manifest.classes, _find_live_threshold(manifest))
        write_label_image(
            staged.path(name_labels(target)),
            _iterate_labels(labels.array, job, meter, overview, np.append(0, classes).astype(np.uint8)),
            shape=job.shape,
            largest=len(found),
            pixel_size_um=job.pixel_size_um,
        )
        cells = _build(manifest, job, found, meter.resolve(), notes, None)
        if overview:
            write_overview(overview, cells, staged, target)
    return cells


def _run_tiles(
    session: DetectionSession, job: ImageJob, *, least_score: float
) -> tuple[JoinedDetections, tuple[str, ...]]:
    """What the net finds in all tiles with a rank score of at least ``least_score``, and what to know of it."""
    pile = DetectionPile(shape=job.shape, overlap_px=job.overlap_px, least_score=least_score)
    done = full = 0
    most = session.detecting.max_cells
    for rows in job.rows:
        band = job.read_channels(rows.window_start, rows.window_stop)
        for tiles in job.iterate_batches(rows):
            for tile, found in zip(tiles, session.run_batch(job.to_input(tiles, band)), strict=True):
                # Those without a place have lower scores than the last that has one.
                full += len(found) == most and found.scores.min() >= least_score
                pile.add(tile, done, found)
                done += 1
                job.tell(done)
    return pile.join(), (*job.notes, *_note_full_tiles(full, job, most))


def _note_full_tiles(full: int, job: ImageJob, most: int) -> list[str]:
    if not full:
        return []
    return [
        f"{full} of {job.tiles} tiles of {job.tile_px} px hold {most} cells, as many as the bundle finds in one; "
        f"if there are more, a smaller tile_px finds them, or a bundle of export.py with max_cells={2 * most}"
    ]


def _paint(label_image: np.ndarray, joined: JoinedDetections, manifest: Manifest) -> Detections:
    """The detections that became labels 1..N, in this order and without their masks."""
    kept = paint_in_order(
        label_image,
        joined.detections,
        joined.order,
        mask_threshold=manifest.splitting.foreground_threshold,
        min_area_px=manifest.splitting.min_area_px,
        min_visible=manifest.splitting.min_visible,
    )
    return replace(joined.detections, masks=joined.detections.masks[:, :0, :0]).take(kept)


def _iterate_labels(
    labels: np.ndarray, job: ImageJob, meter: CellMeter, overview: Overview | None, class_of_label: np.ndarray
) -> Iterator[np.ndarray]:
    """The label image in bands, which are measured and drawn as they pass."""
    for top, image in job.iterate_bands():
        rows = np.array(labels[top : top + image.shape[1]])
        meter.add(top, rows, image)
        if overview:
            overview.add_image(top, image)
            overview.add_labels(top, rows, class_of_label)
        yield rows


def _build(
    manifest: Manifest,
    job: ImageJob,
    found: Detections,
    sums: CellSums,
    notes: tuple[str, ...],
    label_image: np.ndarray | None,
) -> Cells:
    cells = build_painted_cells(
        found,
        sums,
        classes=manifest.classes,
        channels=_name_channels(manifest),
        live_threshold=_find_live_threshold(manifest),
        shape=job.shape,
        label_image=label_image,
        pixel_size_um=job.pixel_size_um,
    )
    return replace(cells, tiles=job.tiles, notes=notes)


def _name_channels(manifest: Manifest) -> tuple[str, ...]:
    return tuple(channel.name for channel in manifest.channels)


def _find_live_threshold(manifest: Manifest) -> float | None:
    """The manifest's, where cells are told apart as live and dead."""
    return manifest.live_threshold if tells_viability(manifest.kind, manifest.classes) else None
