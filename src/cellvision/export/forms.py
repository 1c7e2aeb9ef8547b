"""A bundle again in another form: 16 or 8 bits, or engines for a GPU. Made here, judged by the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.bundle import Graph, Manifest, compute_sha256, load_manifest, write_manifest
from cellvision.export.half import to_half
from cellvision.export.onnx import export_part, split_net
from cellvision.export.progress import Tell, say_nothing
from cellvision.export.quantize.calibration import Feed, build_feeds
from cellvision.export.quantize.finishing import export_integers
from cellvision.export.quantize.sensitivity import draw_sensitivities, quantize_within
from cellvision.export.quantize.static import Quantizer
from cellvision.models.base import SegNet
from cellvision.runtime.graphs.detection_session import PartedSession
from cellvision.runtime.session import open_session

Measure = Callable[[Path], float]
"""Points of accuracy that a bundle folder loses."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantizing:
    """How 8 bit graphs are made.

    Attributes:
        images: (C, H, W) raw counts of training fields, from which ranges are found.
        method: "minmax", "entropy" or "percentile".
        tiles: number of pieces of the images that are run.
        measure: what a bundle loses, for the search for layers to keep in float; None quantises all.
        tolerance_points: largest loss that is good enough.
        rounds: of the search, from 0 up.
        tell: called with a line on the progress.
    """

    images: Sequence[np.ndarray]
    method: str = "minmax"
    tiles: int = 32
    measure: Measure | None = None
    tolerance_points: float = 1.0
    rounds: int = 4
    tell: Callable[[str], None] | None = None


def write_half(net: SegNet, source: Path, folder: Path, *, tell: Tell = say_nothing) -> Manifest:
    """Fill ``folder`` with the bundle ``source`` of ``net`` in float16, and tell of each graph.

    Raises:
        ExportError: the net does not run in float16, or its graph cannot be made.
    """
    manifest = load_manifest(source)
    parts = split_net(
        to_half(net), input_dtype=manifest.input_dtype, detecting=manifest.detecting, parted=manifest.is_parted
    )
    for part in parts:
        tell(f"making the graph in fp16: {part.role}")
        export_part(part, folder / manifest.find_graph(part.role).file)
    return _describe(manifest, folder, precision="fp16", how={"precision": "fp16"})


def write_int8(source: Path, folder: Path, quantizing: Quantizing, *, form: str = "onnxruntime") -> Manifest:
    """Fill ``folder`` with the bundle ``source`` in 8 bits.

    The graphs of a parted bundle are taken one after the other, so that a layer is kept in float for its own loss.
    What the search for such layers found is drawn in ``sensitivity_ROLE.png``.

    Args:
        source: bundle in fp32.
        folder: empty.
        quantizing: see Quantizing.
        form: "onnxruntime" or "tensorrt"; see `quantize_int8`.

    Raises:
        ConfigError: an unknown method, or no image.
        ExportError: a graph cannot be quantised.
    """
    manifest = load_manifest(source)
    for graph in manifest.graphs:  # so that the folder is a whole bundle at any time
        (folder / graph.file).write_bytes((source / graph.file).read_bytes())
    how: dict[str, Any] = {"precision": "int8", "calibration": quantizing.method, "graphs": {}}
    for graph in manifest.graphs:
        feeds = _build_feeds(source, manifest, graph.role, quantizing)
        if not feeds:  # no cell in any calibration field: nothing is known of the masks, they stay float
            how["graphs"][graph.role] = "kept in float: no cell was found in the calibration fields"
            continue
        path = folder / graph.file
        quantizer = Quantizer(
            source / graph.file, feeds=feeds, method=quantizing.method, form=form, tell=quantizing.tell
        )
        if quantizing.measure is None:
            how["graphs"][graph.role] = quantizer.write(path).to_record()
            continue
        search = quantize_within(
            quantizer,
            path,
            measure=_measure_folder(manifest, folder, quantizing.measure),
            tolerance=quantizing.tolerance_points,
            rounds=quantizing.rounds,
            tell=quantizing.tell,
        )
        how["graphs"][graph.role] = search.to_record()
        if search.sensitivities:
            draw_sensitivities(search.sensitivities, folder / f"sensitivity_{graph.role}.png")
    return _describe(manifest, folder, precision="int8", how=how)


def write_trained(net: SegNet, source: Path, folder: Path, *, form: str = "onnxruntime") -> Manifest:
    """Fill ``folder`` with the bundle ``source`` of a net that learned to round, with the integers of its training.

    Args:
        net: that rounds; ``source`` is the bundle of the same weights without rounding.
        source: bundle in fp32.
        folder: empty.
        form: "onnxruntime" or "tensorrt"; see `to_integers`.

    Raises:
        ExportError: a graph cannot be made.
    """
    manifest = load_manifest(source)
    files = {graph.role: folder / graph.file for graph in manifest.graphs}
    how = export_integers(
        net,
        files,
        form=form,
        input_dtype=manifest.input_dtype,
        detecting=manifest.detecting,
        parted=manifest.is_parted,
    )
    return _describe(manifest, folder, precision="int8", how=how)


def _measure_folder(manifest: Manifest, folder: Path, measure: Measure) -> Measure:
    """``measure`` of the whole bundle, when one of its graphs has just been written."""

    def run(path: Path) -> float:
        _describe(manifest, folder, precision="int8", how={})
        return measure(folder)

    return run


def _build_feeds(source: Path, manifest: Manifest, role: str, quantizing: Quantizing) -> list[Feed]:
    """Inputs of one graph; those of "masks" are what the fp32 trunk finds in the images."""
    window_px = manifest.tile_px + 2 * manifest.overlap_px
    images = build_feeds(quantizing.images, dtype=manifest.input_dtype, tile_px=window_px, most=quantizing.tiles)
    if role != "masks":
        return images
    session = open_session(source)
    assert isinstance(session, PartedSession)
    return [feed for image in images for feed in session.iterate_mask_feeds(np.asarray(image["image"]))]


def _describe(manifest: Manifest, folder: Path, *, precision: str, how: dict[str, Any]) -> Manifest:
    """Write the manifest of the graphs that now lie in ``folder``; what was measured of the others is left out."""
    graphs = tuple(
        Graph(role=graph.role, file=graph.file, sha256=compute_sha256(folder / graph.file), precision=precision)
        for graph in manifest.graphs
    )
    described = replace(manifest, graphs=graphs, parity={}, latency={}, provenance={**manifest.provenance, "form": how})
    write_manifest(described, folder)
    return load_manifest(folder)
