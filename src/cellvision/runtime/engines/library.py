"""TensorRT and TensorRT-RTX by their names: loaded, their version checked, and which GPU there is for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cellvision.errors import ConfigError, MissingExtraError, check_choice, explain

BACKENDS = ("tensorrt", "tensorrt_rtx")
LOWEST = {"tensorrt": (10, 12), "tensorrt_rtx": (1, 7)}
"""Oldest versions of which the strongly typed builder and everything else that is used here is known."""

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "trt"}
_OUT_OF_MEMORY = 2


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, as CUDA tells of it: its name, and its compute capability, e.g. "9.0"."""

    name: str
    compute_capability: str


def import_backend(backend: str) -> Any:
    """The module of a backend, one of BACKENDS; both have the same names for everything that is used here.

    Raises:
        ConfigError: another name, a package that does not load, or a version that is too old.
        MissingExtraError: the package is not installed.
    """
    check_choice("backend", backend, BACKENDS)
    package = backend.replace("_", "-")
    try:
        module = import_module(backend)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, extra=_EXTRAS[backend]) from error
    except (ImportError, OSError) as error:
        raise ConfigError(
            explain(
                got=f"{package} is installed but does not load ({error})",
                need="its libraries beside it",
                hint=f"pip install --force-reinstall {package}",
            )
        ) from error
    lowest = ".".join(map(str, LOWEST[backend]))
    if parse_version(module.__version__) < LOWEST[backend]:
        got = f"{package} {module.__version__}"
        raise ConfigError(explain(got=got, need=f"{lowest} or newer", hint=f"pip install -U {package}"))
    return module


def parse_version(text: str) -> tuple[int, int]:
    """The first two numbers of a version; zeros where there is none.

    Example:
        >>> parse_version("10.12.0.36")
        (10, 12)
    """
    numbers = [int(part) if part.isdigit() else 0 for part in text.split(".")]
    major, minor, *_ = (*numbers, 0, 0)
    return major, minor


def import_cuda() -> Any:
    """The CUDA runtime's functions; each gives its status and then its results, see `call`.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", extra="trt") from error


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a function of the CUDA runtime gives: nothing, or one value.

    Raises:
        ConfigError: its status is not success.
    """
    status, *values = function(*arguments)
    if int(status) == 0:
        return values[0] if values else None
    is_memory = int(status) == _OUT_OF_MEMORY
    raise ConfigError(
        explain(
            got=f"{function.__name__} failed with CUDA error {int(status)} ({getattr(status, 'name', 'no name')})",
            need="more free GPU memory" if is_memory else "a GPU that works, and a driver as new as the CUDA runtime",
            hint="fewer streams, or an engine of smaller largest sizes" if is_memory else "nvidia-smi, or provider=cpu",
        )
    )


def list_gpus() -> list[Gpu]:
    """The GPUs that CUDA sees, in its order; none where there is no driver.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        ConfigError: CUDA does not tell about a GPU that it counts.
    """
    cuda = import_cuda()
    try:
        status, count = cuda.cudaGetDeviceCount()
    except RuntimeError:  # the driver's library itself is not there
        return []
    if int(status) != 0:
        return []
    found = [call(cuda.cudaGetDeviceProperties, device) for device in range(count)]
    return [
        Gpu(name=_to_text(properties.name), compute_capability=f"{properties.major}.{properties.minor}")
        for properties in found
    ]


def _to_text(name: str | bytes) -> str:
    return name.split(b"\0")[0].decode(errors="replace") if isinstance(name, bytes) else name


def find_gpu(device: int) -> Gpu:
    """The GPU of a number, counted from 0.

    Raises:
        ConfigError: there is no such GPU.
        MissingExtraError: cuda-bindings is not installed.
    """
    gpus = list_gpus()
    if 0 <= device < len(gpus):
        return gpus[device]
    there = ", ".join(f"{number} ({gpu.name})" for number, gpu in enumerate(gpus)) or "none"
    raise ConfigError(
        explain(
            got=f"no GPU of device={device}; there are: {there}",
            need="an NVIDIA GPU and its driver",
            hint="device=0" if gpus else "provider=cpu; engines of backend=tensorrt_rtx are built without a GPU",
        )
    )
