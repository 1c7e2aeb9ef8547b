"""What every data set promises, and what those on disk share: channels, classes, lists of faults, fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cellvision.bundle import FIELD_COLUMNS, Channel, compute_sha256
from cellvision.data.images import ImageInfo
from cellvision.errors import ConfigError, DataError, check_choice, explain
from cellvision.types import Sample

ROLES = ("nuclear", "live", "dead", "")
MAX_LISTED = 10
BACKGROUND = "background"
UNCERTAIN = "uncertain"
"""What files call cells whose class is not known: it is no class, and such cells are of class IGNORE."""

_COLOUR_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}


@runtime_checkable
class CellDataset(Protocol):
    """Fields of view with their truth, decoded when asked for.

    A data set checks its files and tables when it is made (headers only), so that a fault shows before training.
    It needs no torch, and travels to worker processes by pickle.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, background first; a sample's cell classes are positions in it."""

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Of every image, in order."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each sample, e.g. the well; a split never divides a group. No pixel is decoded for it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Unique name of each sample."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """The field at ``index``, the same bytes at every call."""

    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that decides the samples: equal for equal data on any machine."""


def list_faults(faults: Sequence[str]) -> str:
    """One text for many faults: the first 10, and how many more there are.

    Example:
        >>> list_faults(["a.png is missing", "b.png is missing"])
        '2 faults: a.png is missing; b.png is missing'
    """
    listed = "; ".join(faults[:MAX_LISTED])
    more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
    return f"{len(faults)} fault{'s' if len(faults) > 1 else ''}: {listed}{more}"


def to_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names with "background" first, whether it was given or not.

    Raises:
        ConfigError: no class but background, a name twice, background not first, a class "uncertain", or one with the
            name of another column of ``fields.csv``.
    """
    given = tuple(names)
    classes = given if given[:1] == (BACKGROUND,) else (BACKGROUND, *given)
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ConfigError(
            explain(
                got=f"classes {', '.join(given) or '(none)'}",
                need="at least one class besides background, each once, background first or left out",
                hint="classes=[live, dead]",
            )
        )
    if UNCERTAIN in classes:
        need = f"other names: {UNCERTAIN!r} are cells whose class is not known"
        raise ConfigError(explain(got=f"classes {', '.join(given)}", need=need, hint=f"leave {UNCERTAIN} out"))
    if taken := [name for name in FIELD_COLUMNS if name in classes]:
        need = f"other names: fields.csv has columns {', '.join(taken)} beside those of the classes"
        raise ConfigError(explain(got=f"classes {', '.join(given)}", need=need, hint="classes=[cell]"))
    return classes


def to_channels(names: Sequence[str] | None, infos: Sequence[ImageInfo]) -> tuple[Channel, ...]:
    """Channels of a data set whose image headers are ``infos``, after checking that all images have the same ones.

    Args:
        names: "name" or "name:role", role nuclear, live or dead; one per image channel. None takes the names in the
            files, else "grey", or "red", "green", "blue", or "channel_1" and so on.
        infos: headers of all images, at least one.

    Raises:
        ConfigError: a name twice, or an unknown role.
        DataError: images differ in number or names of channels, or have other than ``names``.

    Example:
        >>> info = ImageInfo(path=Path("a.tif"), shape=(2, 9, 9), dtype="uint16")
        >>> to_channels(["hoechst:nuclear", "pi:dead"], [info])[1]
        Channel(name='pi', role='dead')
    """
    first = infos[0]
    count = first.shape[0]
    default = first.channel_names or _COLOUR_NAMES.get(count) or tuple(f"channel_{i + 1}" for i in range(count))
    channels = tuple(_parse_channel(name) for name in (default if names is None else names))
    if len({c.name for c in channels}) != len(channels):
        raise ConfigError(
            explain(
                got=f"channels {[c.name for c in channels]}", need="each name once", hint="name the channels yourself"
            )
        )
    faults = [f"{info.path.name} has {info.shape[0]} channels" for info in infos if info.shape[0] != len(channels)] + [
        f"{info.path.name} has the channels {', '.join(info.channel_names or ())}"
        for info in infos
        if info.channel_names != first.channel_names
    ]
    if faults:
        raise DataError(
            explain(
                got=f"{first.path.parent}: {list_faults(faults)}",
                need=f"{len(channels)} channels ({', '.join(c.name for c in channels)}), alike in all images",
                hint='name every channel of the images, or choose images of one kind with pattern="..."',
            )
        )
    return channels


def compute_fingerprint(*, settings: Mapping[str, Any], files: Iterable[Path]) -> str:
    """Hex SHA-256 over settings (plain data) and the names and bytes of files; their folder does not matter."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in sorted(files, key=lambda p: p.name):
        digest.update(f"\n{path.name}:{compute_sha256(path)}".encode())
    return digest.hexdigest()


def _parse_channel(text: str) -> Channel:
    name, _, role = text.partition(":")
    check_choice(f"role of channel {name!r}", role, ROLES)
    if not name:
        raise ConfigError(explain(got=f"channel {text!r}", need="a name", hint="hoechst:nuclear"))
    return Channel(name=name, role=role)
