"""A bundle as TensorRT engines: one for each of its graphs, with the sidecars that say what they were built for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from cellvision.bundle import Graph, Manifest, compute_sha256, load_manifest, write_manifest
from cellvision.errors import ConfigError, ExportError, explain
from cellvision.export.graph_options import GraphOptions
from cellvision.export.tensorrt.builder import build_engine, take_gpu
from cellvision.export.tensorrt.options import Shapes, TensorrtOptions, plan_mask_shapes
from cellvision.models.base import SegNet
from cellvision.models.centermask2.model import CenterMask2
from cellvision.runtime.engines.library import import_backend


def check_engines(net: SegNet, graphs: GraphOptions, options: TensorrtOptions) -> None:
    """Raise unless engines can be built of a net here: said before its graphs are made, which takes minutes.

    Raises:
        ExportError: graphs that no engine can run.
        MissingExtraError: the library is not installed.
        ConfigError: it is too old, there is no GPU where it needs one, or single images would be refused.
    """
    if net.spec.kind == "instance" and not graphs.parted:
        got = "an instance net in one graph"
        raise ExportError(explain(got=got, need="two, as engines cannot suppress doubles", hint="form=parted"))
    if graphs.input_dtype == "uint16":
        got = "input_dtype=uint16"
        raise ExportError(explain(got=got, need="an input that TensorRT knows", hint="input_dtype=float32"))
    if options.batch[0] > 1:
        got = f"trt.batch={list(options.batch)}"
        raise ConfigError(explain(got=got, need="1 as the smallest: images come alone too", hint="trt.batch=[1,1,8]"))
    import_backend(options.backend)
    take_gpu(options)


def write_engines(
    net: SegNet, source: Path, folder: Path, options: TensorrtOptions, *, tell: Callable[[str], None] | None = None
) -> Manifest:
    """Fill ``folder`` with engines built of the graphs of the bundle ``source``.

    Its tiles are made smaller where their windows would be larger than the engines take.

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
    graphs = []
    for graph in manifest.graphs:
        engine = folder / f"{Path(graph.file).stem}.engine"
        shapes = plan_shapes(net, graph.role, options)
        told = None if tell is None else partial(_tell_of, tell, engine.name)
        build_engine(source / graph.file, engine, options, shapes=shapes, tell=told)
        graphs.append(
            Graph(
                role=graph.role,
                file=engine.name,
                sha256=compute_sha256(engine),
                engine=options.backend,
                precision=options.precision,
            )
        )
    described = replace(manifest, graphs=tuple(graphs), tile_px=_fit_tile(manifest, options))
    write_manifest(described, folder)
    return described


def plan_shapes(net: SegNet, role: str, options: TensorrtOptions) -> Mapping[str, Shapes]:
    """Shapes of the inputs of a net's graph that are no image, as `build_engine` takes them."""
    if role != "masks":
        return {}
    assert isinstance(net, CenterMask2)
    strides, channels = list(net.detector.roi_heads.pool.strides.values()), net.settings.fpn_channels
    return plan_mask_shapes(options, strides=strides, channels=channels, padded_to=net.spec.stride)


def _fit_tile(manifest: Manifest, options: TensorrtOptions) -> int:
    """A tile whose window the engines take; as it was where none with its margins fits, and only whole images can."""
    window_px = min(options.height[2], options.width[2])
    largest_px = (window_px - 2 * manifest.overlap_px) // manifest.stride * manifest.stride
    return min(manifest.tile_px, largest_px) if largest_px > 0 else manifest.tile_px


def _tell_of(tell: Callable[[str], None], name: str, step: str) -> None:
    tell(f"building {name}: {step}")
