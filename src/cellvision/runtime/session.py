"""A bundle, opened: its manifest, and its graph ready to run on the provider that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from cellvision.bundle import Manifest, load_manifest
from cellvision.errors import BundleError, ConfigError, explain, unknown_name
from cellvision.runtime.graph_file import has_external_data

_SUFFIX = "ExecutionProvider"
_QUIET = 3  # errors only; ONNX Runtime otherwise comments on every optimisation it skips


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """What the graph says about one window of an image.

    Attributes:
        probabilities: (K, H, W) float32 in 0..1, background first.
        distance: (H, W) float32 in 0..1, or None for a graph without that output.
    """

    probabilities: np.ndarray
    distance: np.ndarray | None


class Session:
    """One open bundle. Make it with `open_session`.

    Attributes:
        folder: of the bundle.
        manifest: see cellvision.bundle.Manifest.
        provider: short name of the provider that runs the graph, e.g. "cpu".
    """

    def __init__(
        self, *, folder: Path, manifest: Manifest, provider: str, engine: onnxruntime.InferenceSession
    ) -> None:
        """Hold what `open_session` has opened and checked."""
        self.folder = folder
        self.manifest = manifest
        self.provider = provider
        self._engine = engine

    def run(self, image: np.ndarray) -> Maps:
        """The graph's maps for one window.

        Args:
            image: (C, H, W) of the manifest's input_dtype, channels in the manifest's order.

        Raises:
            BundleError: the graph failed, or its result has another size than the image or is not finite.
        """
        try:
            results = self._engine.run(list(self.manifest.outputs), {"image": np.ascontiguousarray(image)[None]})
        except Exception as error:  # ONNX Runtime raises its own, undocumented kinds
            size = f"{image.shape[1]}x{image.shape[2]} px"
            raise BundleError(
                explain(
                    got=f"{self.manifest.graphs[0].file} failed on {size} ({_first_line(error)})",
                    need="a graph that runs at any size within the memory at hand",
                    hint="a smaller tile_px, or export the bundle again",
                )
            ) from error
        named = dict(zip(self.manifest.outputs, results, strict=True))
        for name, result in named.items():
            self._check_result(name, result, image.shape[1:])
        distance = named.get("distance")
        return Maps(probabilities=named["probabilities"][0], distance=None if distance is None else distance[0, 0])

    def _check_result(self, name: str, result: np.ndarray, size: tuple[int, ...]) -> None:
        planes = len(self.manifest.classes) if name == "probabilities" else 1
        if result.shape != (1, planes, *size):
            raise BundleError(
                explain(
                    got=f"{self.manifest.graphs[0].file}: output {name!r} has shape {result.shape}",
                    need=f"{(1, planes, *size)}",
                    hint="export the bundle again",
                )
            )
        if not np.isfinite(result).all():
            raise BundleError(
                explain(
                    got=f"{self.manifest.graphs[0].file}: output {name!r} holds NaN or infinite values",
                    need="numbers in 0..1",
                    hint="check the image for extreme values, or export the bundle again",
                )
            )


def open_session(bundle_folder: Path | str, *, provider: str = "cpu", threads: int | None = None) -> Session:
    """A bundle ready to run, after checking manifest, graph hash, provider and the graph's inputs and outputs.

    Args:
        bundle_folder: as written by export.
        provider: short name of an ONNX Runtime execution provider, e.g. "cpu" or "cuda". There is no fallback: a
            result that silently took the slow or the less exact way is worse than none.
        threads: processor threads for one graph run, >= 1; None leaves it to ONNX Runtime (all cores).

    Raises:
        BundleError: the bundle is incomplete or altered, its graph needs other files, or does not suit its manifest.
        ConfigError: the provider is not available here, or threads < 1.
    """
    folder = Path(bundle_folder)
    if threads is not None and threads < 1:
        raise ConfigError(explain(got=f"threads={threads}", need="a whole number from 1 up", hint="leave it out"))
    full_name = _find_provider(provider)
    manifest = load_manifest(folder)
    graph = (folder / manifest.graphs[0].file).read_bytes()
    if has_external_data(graph):
        raise BundleError(
            explain(
                got=f"{folder / manifest.graphs[0].file} keeps weights in other files",
                need="one file that holds everything",
                hint="export the bundle again",
            )
        )
    engine = _start_engine(folder / manifest.graphs[0].file, graph, full_name, threads)
    _check_signature(folder / manifest.graphs[0].file, engine, manifest)
    return Session(folder=folder, manifest=manifest, provider=provider, engine=engine)


def list_providers() -> list[str]:
    """Short names of the providers of this ONNX Runtime installation, sorted."""
    return sorted(name.removesuffix(_SUFFIX).lower() for name in onnxruntime.get_available_providers())


def _find_provider(provider: str) -> str:
    for name in onnxruntime.get_available_providers():
        if name.removesuffix(_SUFFIX).lower() == provider:
            return str(name)
    raise ConfigError(unknown_name("provider", provider, list_providers()))


def _start_engine(path: Path, graph: bytes, full_name: str, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        engine = onnxruntime.InferenceSession(graph, options, providers=[full_name])
    except Exception as error:  # ONNX Runtime raises its own, undocumented kinds
        raise BundleError(
            explain(
                got=f"{path} does not load ({_first_line(error)})",
                need=f"an ONNX graph that onnxruntime {onnxruntime.__version__} can run",
                hint="pip install -U onnxruntime, or export the bundle again",
            )
        ) from error
    if full_name not in (running := engine.get_providers()):
        raise ConfigError(
            explain(
                got=f"provider {full_name} is installed but did not start; running: {', '.join(running)}",
                need="its driver and libraries",
                hint=f"provider={running[0].removesuffix(_SUFFIX).lower()}",
            )
        )
    return engine


def _check_signature(path: Path, engine: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """Raise BundleError, expected beside found, unless graph and manifest describe the same inputs and outputs."""
    planes = {"probabilities": len(manifest.classes), "distance": 1}
    if odd := [name for name in manifest.outputs if name not in planes]:
        raise BundleError(_mismatch(path, f"outputs {', '.join(odd)}", f"outputs among {', '.join(planes)}"))
    element = {"float32": "float"}.get(manifest.input_dtype, manifest.input_dtype)
    expected = [_describe("image", f"tensor({element})", ["B", len(manifest.channels), "H", "W"])]
    found = [_describe_node(node, planes=len(manifest.channels)) for node in engine.get_inputs()]
    if found != expected:
        raise BundleError(_mismatch(path, f"inputs {', '.join(found)}", f"inputs {', '.join(expected)}"))
    expected = [_describe(name, "tensor(float)", ["B", planes[name], "H", "W"]) for name in manifest.outputs]
    found = [_describe_node(node, planes=planes.get(node.name)) for node in engine.get_outputs()]
    if sorted(found) != sorted(expected):
        raise BundleError(_mismatch(path, f"outputs {', '.join(found)}", f"outputs {', '.join(expected)}"))


def _describe_node(node: Any, *, planes: int | None) -> str:
    # Names of free dimensions are the exporter's taste; only fixed numbers and the rank are compared.
    free = ["B", planes, "H", "W"]
    shape = [n if isinstance(n, int) else letter for n, letter in zip(node.shape, free, strict=False)]
    return _describe(node.name, node.type, shape + list(node.shape[4:]))


def _describe(name: str, element: str, shape: list[Any]) -> str:
    return f"{name}: {element} [{', '.join(map(str, shape))}]"


def _mismatch(path: Path, found: str, expected: str) -> str:
    return explain(got=f"{path} has {found}", need=expected, hint="export the bundle again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
