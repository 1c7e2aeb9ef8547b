"""What is written beside an engine: what it was built from, with and for, so that it is not run anywhere else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cellvision.bundle import compute_sha256
from cellvision.errors import BundleError, explain
from cellvision.runtime.engines.library import BACKENDS, Gpu

FORMAT = "cellvision-engine"
FORMAT_VERSION = 1
PRECISIONS = ("fp32", "fp16", "int8")
ELEMENTS = ("float", "float16", "uint8", "int8", "int32", "int64", "bool")
"""Kinds of numbers that go in and out of engines, as ONNX Runtime calls them."""


@dataclass(frozen=True, kw_only=True)
class EngineTensor:
    """One input or output of an engine.

    Attributes:
        name: of it.
        element: one of ELEMENTS.
        shape: whole numbers, and a name for each size that is free.
    """

    name: str
    element: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class EngineSidecar:
    """Where an engine comes from.

    Attributes:
        library, library_version: what built it and alone can run it: "tensorrt" or "tensorrt_rtx".
        gpu: that it was built on. An engine of TensorRT is for that kind of GPU only. One of TensorRT-RTX is finished
            on the GPU that runs it, so that it can be built without any: then None.
        engine_sha256, onnx_sha256: of the engine's file and of the graph that it was built from.
        precision: lowest in which a layer with weights computes: "fp32", "fp16" or "int8".
        layers: number of layers with weights that compute in each precision.
        profile: from each input to its smallest, best and largest shape.
        inputs, outputs: see EngineTensor.
    """

    library: str
    library_version: str
    gpu: Gpu | None
    engine_sha256: str
    onnx_sha256: str
    precision: str
    layers: dict[str, int]
    profile: dict[str, tuple[tuple[int, ...], ...]]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]


def find_sidecar(engine: Path) -> Path:
    """Where the sidecar of an engine is.

    Example:
        >>> find_sidecar(Path("bundle/graph.engine")).name
        'graph.engine.json'
    """
    return engine.with_name(f"{engine.name}.json")


def write_sidecar(sidecar: EngineSidecar, engine: Path) -> Path:
    """Write the sidecar beside its engine and return its path."""
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(sidecar)}
    path = find_sidecar(engine)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load_sidecar(engine: Path) -> EngineSidecar:
    """The sidecar of an engine, as it was written.

    Raises:
        BundleError: there is none, or it is not one of this release.
    """
    path = find_sidecar(engine)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(_unusable(path, "is not there", f"the file that was written with {engine.name}")) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(_unusable(path, f"cannot be read ({error})")) from error
    try:
        if (record.pop("format"), record.pop("format_version")) != (FORMAT, FORMAT_VERSION):
            raise ValueError("it has another format")
        return _from_record(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise BundleError(_unusable(path, f"is not a sidecar of this release ({why})")) from error


def check_engine_sidecar(
    engine: Path, *, library_version: str, gpu: Gpu | None, onnx: Path | None = None
) -> EngineSidecar:
    """The sidecar of an engine, after checking that the engine may run here.

    Args:
        engine: its file.
        library_version: of the installed library that the sidecar names; no version runs another's engines.
        gpu: that is to run it; compared for TensorRT only, see EngineSidecar.
        onnx: the graph that it must have been built from, where that is there.

    Raises:
        BundleError: no sidecar, or it tells of another file, version, GPU or graph.
    """
    sidecar = load_sidecar(engine)
    found: dict[str, tuple[Any, Any]] = {
        "engine file": (sidecar.engine_sha256, compute_sha256(engine) if engine.is_file() else "no file"),
        f"{sidecar.library} version": (sidecar.library_version, library_version),
    }
    if sidecar.library == "tensorrt":
        found["GPU"] = (_name(sidecar.gpu), _name(gpu))
    if onnx is not None:
        found["graph"] = (sidecar.onnx_sha256, compute_sha256(onnx) if onnx.is_file() else "no file")
    for what, (built, here) in found.items():
        if built != here:
            raise BundleError(
                explain(
                    got=f"{engine}: its {what} is {here[:60]}",
                    need=f"{built[:60]}, with which it was built",
                    hint="build the engine again here, python export.py +trt=...",
                )
            )
    return sidecar


def _from_record(record: dict[str, Any]) -> EngineSidecar:
    if (keys := set(record)) != (known := {field.name for field in fields(EngineSidecar)}):
        raise ValueError(f"unknown or missing keys {', '.join(sorted(keys ^ known))}")
    texts = [record[key] for key in ("library", "library_version", "engine_sha256", "onnx_sha256", "precision")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is none")
    if record["library"] not in BACKENDS or record["precision"] not in PRECISIONS:
        raise ValueError("unknown library or precision")
    profile = {str(name): _to_shapes(shapes) for name, shapes in record["profile"].items()}
    layers = {str(precision): int(count) for precision, count in record["layers"].items()}
    ports = {key: tuple(_to_tensor(entry) for entry in record[key]) for key in ("inputs", "outputs")}
    named = [tensor.name for tensor in ports["inputs"]]
    if sorted(profile) != sorted(named) or {tensor.element for each in ports.values() for tensor in each} - {*ELEMENTS}:
        raise ValueError("inputs that do not fit the profile, or of an unknown kind")
    gpu = None if record["gpu"] is None else Gpu(**{key: str(value) for key, value in record["gpu"].items()})
    return EngineSidecar(**{**record, **ports, "gpu": gpu, "layers": layers, "profile": profile})


def _to_shapes(shapes: Any) -> tuple[tuple[int, ...], ...]:
    smallest, best, largest = ([int(size) for size in shape] for shape in shapes)
    return tuple(smallest), tuple(best), tuple(largest)


def _to_tensor(entry: dict[str, Any]) -> EngineTensor:
    shape = tuple(size if isinstance(size, int) else str(size) for size in entry["shape"])
    return EngineTensor(**{**entry, "name": str(entry["name"]), "element": str(entry["element"]), "shape": shape})


def _name(gpu: Gpu | None) -> str:
    return "none" if gpu is None else f"{gpu.name} (compute capability {gpu.compute_capability})"


def _unusable(path: Path, why: str, need: str = "what export wrote") -> str:
    return explain(got=f"{path} {why}", need=need, hint="build the engine again, python export.py +trt=...")
