"""Every error a user can cause, each one sentence in three parts: got, need, try."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeGuard


class CellvisionError(Exception):
    """Base of all errors a user, a file or a setting can cause; its text is fit to show without a traceback."""


class ConfigError(CellvisionError):
    """A setting is missing, unknown or out of range."""


class DataError(CellvisionError):
    """A file or an annotation cannot be used as it is."""


class ShapeError(CellvisionError):
    """Two arrays, or an array and a model, do not fit together."""


class BundleError(CellvisionError):
    """A bundle is incomplete, altered, or does not suit the request."""


class ExportError(CellvisionError):
    """An exported graph could not be made or does not agree with the net it came from."""


class MissingExtraError(CellvisionError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f'{package} is not installed; it is needed here; try: pip install "cellvision[{extra}]"')


def explain(*, got: str, need: str, hint: str) -> str:
    """One sentence "got; need; try" for an error text.

    Example:
        >>> explain(got="image.tif is 0x5 px", need="at least 1x1 px", hint="save the image again")
        'image.tif is 0x5 px; need at least 1x1 px; try: save the image again'
    """
    return f"{got}; need {need}; try: {hint}"


def to_sentence(error: BaseException) -> str:
    """What an error says; where the operating system says it, with what is needed and what to try.

    Example:
        >>> to_sentence(OSError(28, "No space left on device", "runs/a/history.csv"))
        'runs/a/history.csv: No space left on device; need room on the disk; try: free some, or another folder'
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    got = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return explain(got=got, need="room on the disk", hint="free some, or another folder")
    if error.errno == errno.EFBIG:
        return explain(got=got, need="a system that allows files so large", hint="ulimit -f unlimited, or another disk")
    if error.filename:
        return explain(got=got, need="a path that can be used so", hint="another path, or other rights of access")
    return explain(got=got, need="a system that lets this be done", hint="the same again, once its cause is mended")


def read_first_line(error: BaseException) -> str:
    """What an error of another library says first; its kind, where it says nothing.

    Example:
        >>> read_first_line(ValueError("odd")), read_first_line(KeyError())
        ('odd', 'KeyError')
    """
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def unknown_name(what: str, name: object, known: Iterable[str]) -> str:
    """Error text for a name that is not among the known ones: all of them, sorted, and the closest.

    Example:
        >>> unknown_name("attention", "gates", ["none", "gate"])
        "unknown attention 'gates'; need one of: gate, none; try: 'gate'"
    """
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.0)
    hint = repr(close[0]) if close else "install the part that provides it"
    return explain(got=f"unknown {what} {name!r}", need=f"one of: {', '.join(names) or '(none exist)'}", hint=hint)


def check_choice(what: str, value: str, known: Iterable[str]) -> None:
    """Raise ConfigError, listing what exists, unless ``value`` is one of ``known``."""
    if value not in (names := list(known)):
        raise ConfigError(unknown_name(what, value, names))


def is_finite_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value read from a file is a number that a float can hold; True, NaN and 10**400 are not.

    Example:
        >>> [is_finite_number(value) for value in (3, 0.5, float("inf"), 10**400, True, "3")]
        [True, True, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
