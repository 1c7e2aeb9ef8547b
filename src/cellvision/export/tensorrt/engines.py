"""A bundle as TensorRT engines: one for each of its graphs, with the sidecars that say what they were built for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cellvision.bundle import Graph, Manifest, compute_sha256, load_manifest, write_manifest
from cellvision.errors import ExportError, explain
from cellvision.export.tensorrt.builder import build_engine
from cellvision.export.tensorrt.options import TensorrtOptions, plan_mask_shapes
from cellvision.models.base import SegNet
from cellvision.models.centermask2.model import CenterMask2


def check_engine_form(manifest: Manifest) -> None:
    """Raise ExportError for a bundle that engines cannot run."""
    if manifest.kind == "instance" and not manifest.is_parted:
        got = "an instance net in one graph"
        raise ExportError(explain(got=got, need="two, as engines cannot suppress doubles", hint="form=parted"))
    if manifest.input_dtype == "uint16":
        got = "input_dtype=uint16"
        raise ExportError(explain(got=got, need="an input that TensorRT knows", hint="input_dtype=float32"))


def write_engines(
    net: SegNet, source: Path, folder: Path, options: TensorrtOptions, *, tell: Callable[[str], None] | None = None
) -> Manifest:
    """Fill ``folder`` with engines built of the graphs of the bundle ``source``.

    Args:
        net: what the bundle is of; its pyramid tells the sizes of the maps between two engines.
        source: bundle of graphs in the precision of ``options``.
        folder: empty.
        options: see TensorrtOptions.
        tell: called with a line on the progress.

    Raises:
        ExportError: a graph that no engine can run, or one that was not built.
        MissingExtraError: the library is not installed.
    """
    manifest = load_manifest(source)
    check_engine_form(manifest)
    graphs = []
    for graph in manifest.graphs:
        engine = folder / f"{Path(graph.file).stem}.engine"
        shapes = None
        if graph.role == "masks":
            assert isinstance(net, CenterMask2)
            strides, channels = list(net.detector.roi_heads.pool.strides.values()), net.settings.fpn_channels
            shapes = plan_mask_shapes(options, strides=strides, channels=channels, padded_to=net.spec.stride)
        build_engine(source / graph.file, engine, options, shapes=shapes, tell=tell)
        graphs.append(
            Graph(
                role=graph.role,
                file=engine.name,
                sha256=compute_sha256(engine),
                engine=options.backend,
                precision=options.precision,
            )
        )
    described = replace(manifest, graphs=tuple(graphs))
    write_manifest(described, folder)
    return described
