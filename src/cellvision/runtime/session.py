"""A bundle, opened: its manifest read, its graphs checked and ready to run on the provider that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellvision.bundle import Graph, Manifest, load_manifest
from cellvision.runtime.graphs.detection_session import DetectionSession, PartedSession, WholeSession
from cellvision.runtime.graphs.map_session import MapSession
from cellvision.runtime.graphs.onnx_graph import GraphRunner, open_onnx_graph
from cellvision.runtime.graphs.providers import choose_providers
from cellvision.runtime.graphs.providers import list_providers as list_providers
from cellvision.runtime.graphs.signature import check_detection_graph, check_map_graph, check_parted_graphs
from cellvision.runtime.run_settings import RunSettings

Session = MapSession | DetectionSession
"""An open bundle: of maps, or of detections."""


def open_session(
    bundle_folder: Path | str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    provider_options: Mapping[str, str] | None = None,
    arena: str = "keep",
    profile_prefix: Path | None = None,
    warm_up_px: int | None = None,
) -> Session:
    """A bundle ready to run, after checking manifest, hashes, provider and the graphs' inputs and outputs.

    Args:
        bundle_folder: as written by export.
        provider: short name of an ONNX Runtime execution provider, e.g. "cpu" or "cuda". There is no fallback: a
            result that silently took the slow or the less exact way is worse than none. Graphs that are engines of
            TensorRT run on a GPU whatever it says.
        threads: processor threads for one graph run, >= 1; None leaves it to ONNX Runtime (all cores).
        provider_options: of that provider; see RunSettings.
        arena: "keep", "shrink" or "none": what becomes of the memory of a run; see RunSettings.
        profile_prefix: beginning of the name of a file with the times of all operators; None for none.
        warm_up_px: edge of an image to run once, so that the first real one takes no longer than others; None leaves
            that out.

    Raises:
        BundleError: the bundle is incomplete or altered, a graph needs other files, or does not suit its manifest.
        ConfigError: the provider is not available here, or a setting is out of its range.
    """
    settings = RunSettings(
        provider=provider,
        provider_options=dict(provider_options or {}),
        threads=threads,
        arena=arena,
        profile_prefix=profile_prefix,
    )
    session = open_bundle(Path(bundle_folder), settings)
    if warm_up_px is not None:
        session.probe(warm_up_px)
    return session


def open_bundle(folder: Path, settings: RunSettings) -> Session:
    """A bundle ready to run as ``settings`` say; see `open_session`."""
    choose_providers(settings)  # before any file is read
    manifest = load_manifest(folder)
    graphs = {graph.role: _open_graph(folder, graph, settings, manifest) for graph in manifest.graphs}
    parts: dict[str, Any] = {"folder": folder, "manifest": manifest, "settings": settings, "graphs": graphs}
    if manifest.kind != "instance":
        check_map_graph(graphs["whole"], manifest)
        return MapSession(**parts)
    if manifest.is_parted:
        return PartedSession(maps=check_parted_graphs(graphs["trunk"], graphs["masks"], manifest), **parts)
    check_detection_graph(graphs["whole"], manifest)
    return WholeSession(**parts)


def _open_graph(folder: Path, graph: Graph, settings: RunSettings, manifest: Manifest) -> GraphRunner:
    if graph.engine != "onnx":
        from cellvision.runtime.engines.session import open_engine  # its libraries are large, and rarely there

        return open_engine(folder / graph.file, devices=(int(settings.provider_options.get("device_id", 0)),))
    if manifest.is_parted and settings.profile_prefix is not None:  # both files would have one name
        prefix = settings.profile_prefix
        settings = replace(settings, profile_prefix=prefix.with_name(f"{prefix.name}_{graph.role}"))
    return open_onnx_graph(folder / graph.file, settings)
