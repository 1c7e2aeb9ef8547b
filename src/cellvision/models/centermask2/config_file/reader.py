"""A CenterMask2 config file of detectron2 (YAML with ``_BASE_``) as plain settings of our own net and its training.

Neither detectron2 nor yacs is needed. A file says only what differs from detectron2's and CenterMask2's defaults, so
these count as read too: a file that leaves MODEL.MASK_ON out asks for a net without masks, there and here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cellvision.errors import ConfigError, explain, unknown_name
from cellvision.models.centermask2.config_file.keys import CENTERMASK_DEFAULTS, DETECTRON2_DEFAULTS, WITHOUT_EFFECT
from cellvision.models.centermask2.config_file.rules import build_net_settings, build_training_settings, find_idle
from cellvision.models.centermask2.config_file.settings import TRAINING_KEYS, CenterMaskSettings, TrainingSettings

_BASE = "_BASE_"
_DEFAULTS = {**DETECTRON2_DEFAULTS, **CENTERMASK_DEFAULTS}
_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """What a config file says.

    Attributes:
        net: the structure and the thresholds of the net.
        training: schedule and image sizes.
        ignored: keys of the file that have no effect here, with the reason.
        untaken: keys of the file that are in ``training``, with their values, which the settings of a run decide.
    """

    net: CenterMaskSettings
    training: TrainingSettings
    ignored: Mapping[str, str] = field(default_factory=dict)
    untaken: Mapping[str, Any] = field(default_factory=dict)


def read_config_file(path: str | Path) -> ConfigFile:
    """The settings in a CenterMask2 config file.

    Args:
        path: YAML; ``_BASE_`` names one or more files, relative to the file that names them, that it builds on.

    Raises:
        ConfigError: the file is missing or no YAML of plain values; a key is unknown, has a value of the wrong type,
            or asks for what CenterMask2 does not have here. The text names the keys.

    Example:
        >>> read_config_file("lite.yaml")
        Traceback (most recent call last):
        cellvision.errors.ConfigError: lite.yaml does not exist; need a YAML file; try: check the path
    """
    if not isinstance(path, str | Path):
        got = f"model.config_file={path!r}"
        raise ConfigError(explain(got=got, need="the path of a YAML file", hint="model.config_file=FILE.yaml"))
    return read_config_tree(_load(Path(path), above=()))


def read_config_tree(tree: Mapping[str, Any]) -> ConfigFile:
    """The settings in nested sections, such as a file's content or the whole of a detectron2 config.

    Args:
        tree: upper-case keys; strings that spell a Python value ("(1, 2)", "1e-4") stand for it.

    Raises:
        ConfigError: as in ``read_config_file``.
    """
    given = {key: _read_literal(value) for key, value in flatten_keys(tree)}
    if given.get("VERSION", _VERSION) != _VERSION:
        need = f"version {_VERSION}"
        raise ConfigError(explain(got=f"VERSION={given['VERSION']}", need=need, hint="convert the file in detectron2"))
    ignored = {key: reason for key in given if (reason := _find_reason(key)) is not None}
    _check_known(key for key in given if key not in ignored)
    values = _DEFAULTS | {key: _fit(key, value) for key, value in given.items() if key in _DEFAULTS}
    idle = find_idle(values)
    ignored |= {key: idle[key] for key in given if key in idle and key not in ignored}
    net = build_net_settings(values, idle)
    return ConfigFile(
        net=net,
        training=build_training_settings(values),
        ignored=dict(sorted(ignored.items())),
        untaken={key: values[key] for key in TRAINING_KEYS.values() if key in given},
    )


def read_known_keys(tree: Mapping[str, Any]) -> ConfigFile:
    """The settings in the whole config of a program, which may hold keys of other projects: these are left alone.

    Raises:
        ConfigError: as in ``read_config_file``, but for unknown keys.
    """
    return read_config_tree({key: value for key, value in flatten_keys(tree) if key in _DEFAULTS})


def flatten_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots and their values, from nested sections.

    Example:
        >>> dict(flatten_keys({"MODEL": {"FPN": {"NORM": ""}}, "VERSION": 2}))
        {'MODEL.FPN.NORM': '', 'VERSION': 2}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _load(path: Path, *, above: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a file over that of its bases; ``above`` are the files that led to it."""
    path = path.expanduser()
    if path.resolve() in above:
        way = " -> ".join(map(str, (*above, path.resolve())))
        raise ConfigError(explain(got=f"{_BASE} goes in a circle: {way}", need="an end", hint="remove one of them"))
    if not path.is_file():
        raise ConfigError(explain(got=f"{path} does not exist", need="a YAML file", hint="check the path"))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            explain(got=f"{path}: {reason}", need="YAML of plain values", hint="mend that line")
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(explain(got=f"{path} holds {tree!r}", need="sections such as MODEL", hint="check the file"))
    whole: dict[str, Any] = {}
    for base in _list_bases(tree, path):
        # Joining with an absolute path or one that begins with ~ gives that path itself.
        _merge(_load(path.parent / Path(base).expanduser(), above=(*above, path.resolve())), into=whole)
    _merge(tree, into=whole)
    return whole


def _list_bases(tree: dict[str, Any], path: Path) -> list[str]:
    """Take the names of the base files out of a file's content."""
    bases = tree.pop(_BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and "://" not in base for base in bases):
        need = "one or more files on this machine"
        raise ConfigError(explain(got=f"{path}: {_BASE}={bases!r}", need=need, hint="save the base beside the file"))
    return bases


def _merge(tree: Mapping[str, Any], *, into: dict[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(value, into=into[key])
        else:
            into[key] = value


def _read_literal(value: Any) -> Any:
    """The Python value that a string spells, as yacs reads it; any other string as it is. Lists become tuples."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return tuple(map(_read_literal, value)) if isinstance(value, list | tuple) else value


def _find_reason(key: str) -> str | None:
    """Why a key has no effect, or None if it has one or is unknown."""
    for name, reason in WITHOUT_EFFECT.items():
        if key == name or key.startswith(f"{name}."):
            return reason
    outside = key.partition(".")[0] != "MODEL" and key not in _DEFAULTS
    return "outside of MODEL; set it in the settings of this run" if outside else None


def _check_known(keys: Iterator[str]) -> None:
    unknown = [key for key in keys if key not in _DEFAULTS]
    if unknown:
        first, *others = (unknown_name("key of CenterMask2", key, _DEFAULTS) for key in unknown)
        raise ConfigError(first if not others else f"{first} (also unknown: {', '.join(unknown[1:])})")


def _fit(key: str, value: Any) -> Any:
    """The value as the type of the key's default."""
    default = _DEFAULTS[key]
    if isinstance(default, tuple):
        kind = type(default[0]) if default else str
        fits = isinstance(value, tuple) and all(_is_a(kind, one) for one in value)
        value = tuple(map(kind, value)) if fits else value
        need = f"a list of {kind.__name__}"
    else:
        fits = _is_a(type(default), value)
        value = type(default)(value) if fits else value
        need = f"a value of type {type(default).__name__}"
    if not fits:
        raise ConfigError(explain(got=f"{key}={value!r}", need=need, hint=f"{key}: {default}"))
    return value


def _is_a(kind: type, value: object) -> bool:
    """Whether the value is of that type; a whole number is a float too, true and false are no numbers."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind
