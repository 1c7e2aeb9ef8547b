"""Nets by name: what a checkpoint's record, a command line and a contract test build from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from cellvision.errors import ConfigError, explain, unknown_name
from cellvision.models.base import SegNet
from cellvision.registry import Registry

MODELS = Registry("model")
"""Net classes; each takes plain keyword arguments."""

BACKBONES = Registry("backbone")
"""Encoder classes; each gives {level: feature map}, level i at stride 2**i."""


def build_model(*, name: str, **arguments: Any) -> SegNet:
    """The net registered as ``name``, made with ``arguments`` and carrying them as plain data in ``config``.

    ``build_model(**net.config)`` makes the same structure again, with every default and all that the net decided by
    itself written out, so that a checkpoint outlives a changed default. Weights are not read or fetched a second time,
    because they then come from the checkpoint.

    Args:
        name: one of ``list_models()``.
        arguments: those of the net's class; lists, tuples and mappings of any kind.

    Raises:
        ConfigError: unknown name, an argument missing, unknown or out of range.

    Example:
        >>> net = build_model(name="unet", in_channels=2, classes=("background", "cell"), widths=(4, 8))
        >>> net.spec.stride, build_model(**net.config).config == net.config
        (2, True)
    """
    builder = MODELS.get(name)
    plain = _to_plain(arguments)
    config = _complete(name, builder, plain)
    net: SegNet = MODELS.build(name, **plain)
    net.config = {**config, **net.decided}
    return net


def list_models() -> list[str]:
    """Names that ``build_model`` knows, sorted.

    Example:
        >>> "unet" in list_models()
        True
    """
    return MODELS.names()


def _complete(name: str, builder: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with every default filled in and the name first; ConfigError names what does not fit."""
    parameters = dict(inspect.signature(builder).parameters)
    if parameters.pop("settings", None) is not None:  # the fields of its dataclass ``options``, with their defaults
        parameters |= inspect.signature(builder.options).parameters
    known = [f"model.{key}" for key in parameters]
    for key in arguments:
        if key not in parameters:
            raise ConfigError(unknown_name(f"setting of {name}", f"model.{key}", known))
    missing = [f"model.{key}" for key, p in parameters.items() if p.default is p.empty and key not in arguments]
    if missing:
        raise ConfigError(
            explain(got=f"model {name!r} lacks {', '.join(missing)}", need="a value for each", hint=f"{missing[0]}=...")
        )
    defaults = {key: _to_plain(p.default) for key, p in parameters.items()}
    return {"name": name, **defaults, **arguments}


def _to_plain(value: Any) -> Any:
    """Lists and dicts in place of every other sequence and mapping, so that JSON and a checkpoint can hold them."""
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_plain(item) for item in value]
    return value
