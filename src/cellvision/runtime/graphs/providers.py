"""The execution providers of this ONNX Runtime installation, by short names."""

from __future__ import annotations

import onnxruntime

from cellvision.errors import ConfigError, explain, unknown_name
from cellvision.runtime.run_settings import RunSettings

SUFFIX = "ExecutionProvider"
# What one provider cannot do goes to the next rather than to the processor; asked for by their makers.
_COMPANIONS = {"tensorrt": "cuda", "nvtensorrtrtx": "cuda"}
_GPUS = ("cuda", "tensorrt", "nvtensorrtrtx")
_NVIDIA = "python -m pip uninstall onnxruntime, then install onnxruntime-gpu"
# How to get those that people ask for and that the plain package does not have.
_SOURCES = {
    "cuda": ("an NVIDIA GPU", _NVIDIA),
    "tensorrt": ("an NVIDIA GPU and the libraries of TensorRT", _NVIDIA),
    "openvino": ("an Intel processor or GPU", "python -m pip uninstall onnxruntime, then install onnxruntime-openvino"),
    "dml": ("Windows", "python -m pip uninstall onnxruntime, then install onnxruntime-directml"),
    "coreml": ("macOS", "onnxruntime there"),
}


def list_providers() -> list[str]:
    """Short names of the providers of this ONNX Runtime installation, sorted."""
    return sorted(_list_full_names())


def find_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider, e.g. "CPUExecutionProvider" of "cpu".

    Raises:
        ConfigError: it is not installed here.
    """
    full_names = _list_full_names()
    if provider in _SOURCES and provider not in full_names:
        need, how = _SOURCES[provider]
        raise ConfigError(
            explain(
                got=f"provider={provider} with an ONNX Runtime that has only {', '.join(sorted(full_names))}",
                need=f"{need}, and a package of ONNX Runtime that has {provider}",
                hint=f"{how}; or provider=cpu",
            )
        )
    if provider not in full_names:
        raise ConfigError(unknown_name("provider", provider, full_names))
    return full_names[provider]


def choose_providers(settings: RunSettings) -> list[tuple[str, dict[str, str]]]:
    """What ONNX Runtime is to use, best first, each with its options.

    Raises:
        ConfigError: the provider is not installed here.
    """
    chosen = [(find_provider(settings.provider), dict(settings.provider_options))]
    companion = _list_full_names().get(_COMPANIONS.get(settings.provider, ""))
    if companion is not None:
        device = (
            {"device_id": settings.provider_options["device_id"]} if "device_id" in settings.provider_options else {}
        )
        chosen.append((companion, device))
    return chosen


def find_device(settings: RunSettings) -> tuple[str, int]:
    """(type, number) of the device whose memory results are made in: what stays there need not be copied."""
    if settings.provider in _GPUS:
        return "cuda", int(settings.provider_options.get("device_id", 0))
    return "cpu", 0


def _list_full_names() -> dict[str, str]:
    return {name.removesuffix(SUFFIX).lower(): str(name) for name in onnxruntime.get_available_providers()}
