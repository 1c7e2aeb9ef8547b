"""Files that decide what a step makes: found in its settings, and known by their contents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cellvision.bundle import compute_sha256

_WRITTEN = ("logger", "trt.timing_cache")
"""Settings whose files a step writes, wherever they are."""

_PLACE = re.compile(r"(.*_)?(root|folder|dir|path|file|images|labels|annotations|weights|teacher|ckpt)")
"""Names of settings that are paths: in others "train" is no folder that happens to be there."""

_NO_PLACES = ("repeated_images",)


def find_inputs(settings: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, tuple[Path, ...]]:
    """What is there of the files and folders that settings name, by step; of a folder not also what lies in it.

    Args:
        settings: of the scripts, by step, as they are composed: then no quotes are left, and references are resolved.
        folder: of the run; what lies in it is made by the steps themselves.
    """
    return {name: _choose(composed, folder.resolve()) for name, composed in settings.items()}


def _choose(settings: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    texts = list_texts(settings).items()
    read = [(key, text) for key, text in texts if not any(f"{key}.".startswith(f"{own}.") for own in _WRITTEN)]
    named = {_find(text) for key, text in read if is_path(key, text)}
    paths = {path for path in named if path is not None and not path.resolve().is_relative_to(folder)}
    paths |= {base for path in paths for base in _list_bases(path)}
    return tuple(sorted(path for path in paths if paths.isdisjoint(path.parents)))


def _list_bases(path: Path, known: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files that a configuration goes on from, and those that these go on from."""
    if path.suffix not in (".yaml", ".yml") or path in known:
        return
    with suppress(OSError, ValueError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        named = content.get("_BASE_", []) if isinstance(content, dict) else []
        for name in [named] if isinstance(named, str) else named:
            base = (path.parent / Path(str(name)).expanduser()).resolve()
            if base.is_file():
                yield base
                yield from _list_bases(base, known | {path})


def _find(text: str) -> Path | None:
    with suppress(OSError, ValueError, RuntimeError):  # too long, a character that no name has, nobody's home
        for path in (Path(text), Path(text).expanduser()):
            if text and path.exists():
                return path.absolute()
    return None


def list_texts(plain: Any, key: str = "") -> dict[str, str]:
    """All values of settings that are texts, by setting.

    Args:
        plain: settings, resolved.
        key: of ``plain``.

    Example:
        >>> list_texts({"data": {"root": "wells", "sizes": [1, "all"]}})
        {'data.root': 'wells', 'data.sizes[1]': 'all'}
    """
    found: dict[str, str] = {}
    if isinstance(plain, Mapping):
        for name, value in plain.items():
            found |= list_texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(plain, list | tuple):
        for at, value in enumerate(plain):
            found |= list_texts(value, f"{key}[{at}]")
    elif isinstance(plain, str):
        found[key] = plain
    return found


def is_path(key: str, text: str) -> bool:
    """Whether a setting's text is meant as a path: by how it is written, or by the setting's name.

    Example:
        >>> [is_path("logger.tags.plate", "train"), is_path("data.root", "train"), is_path("ckpt", "best.ckpt")]
        [False, True, True]
    """
    name = re.sub(r"\[\d+\]", "", key).rpartition(".")[2]
    return "/" in text or bool(Path(text).suffix) or (name not in _NO_PLACES and _PLACE.fullmatch(name) is not None)


def hash_folder(folder: Path, *, without: Path) -> list[list[str]]:
    """Path and SHA-256 of each file in a folder and in those that links in it lead to, sorted.

    Args:
        folder: to look at.
        without: folder whose files do not count, wherever it is found in this one.
    """
    return [[path.relative_to(folder).as_posix(), compute_sha256(path)] for path in _walk(folder, {without.resolve()})]


def _walk(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Files in a folder; a link to one of the folders ``above`` is not followed, as it would never end."""
    here = folder.resolve()
    if here in above or folder.name == "__pycache__":
        return
    with suppress(PermissionError):
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                yield from _walk(path, above | {here})
            elif path.is_file():
                yield path
