"""The execution providers of this ONNX Runtime installation, by short names."""

from __future__ import annotations

import onnxruntime

from cellvision.errors import ConfigError, unknown_name
from cellvision.runtime.run_settings import RunSettings

SUFFIX = "ExecutionProvider"
# What one provider cannot do goes to the next rather than to the processor; asked for by their makers.
_COMPANIONS = {"tensorrt": "cuda", "nvtensorrtrtx": "cuda"}
_GPUS = ("cuda", "tensorrt", "nvtensorrtrtx")


def list_providers() -> list[str]:
    """Short names of the providers of this ONNX Runtime installation, sorted."""
    return sorted(_list_full_names())


def find_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider, e.g. "CPUExecutionProvider" of "cpu".

    Raises:
        ConfigError: it is not installed here.
    """
    full_names = _list_full_names()
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
