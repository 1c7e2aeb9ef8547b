"""Lists of names and patterns, such as "decoder.0.*", by which settings choose layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from cellvision.checks import refuse
from cellvision.errors import ConfigError, explain


def to_patterns(key: str, value: Any) -> tuple[str, ...]:
    """The patterns of a setting.

    Raises:
        ConfigError: no list of texts; a single text would count as a list of its letters.

    Example:
        >>> to_patterns("compress.prune.protected", ["decoder.0.*", "stem"])
        ('decoder.0.*', 'stem')
    """
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(each, str) for each in value):
        example = f"[{value}]" if isinstance(value, str) else "[]"
        raise refuse(key, value, need="a list of names or patterns of layers", example=example)
    return tuple(value)


def check_patterns(key: str, patterns: Sequence[str], layers: Collection[str]) -> None:
    """Raise ConfigError, with the closest names, where a pattern fits none of the ``layers``.

    Example:
        >>> check_patterns("compress.prune.protected", ["decodr.*"], ["encoder.0", "decoder.0"])
        Traceback (most recent call last):
        cellvision.errors.ConfigError: compress.prune.protected has 'decodr.*', which fits no layer; need names or \
patterns of layers such as decoder.0, encoder.0; try: compress.prune.protected=[decoder.0]
    """
    for pattern in patterns:
        if any(fnmatchcase(layer, pattern) for layer in layers):
            continue
        close = get_close_matches(pattern, sorted(layers), n=6, cutoff=0.0)
        better = [*(close[0] if each == pattern else each for each in patterns)] if close else []
        got, need = f"{key} has {pattern!r}, which fits no layer", "names or patterns of layers"
        need += f" such as {', '.join(close)}" if close else " of a net that has some"
        raise ConfigError(explain(got=got, need=need, hint=f"{key}=[{','.join(better)}]"))
