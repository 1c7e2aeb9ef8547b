"""Whether a TIFF file holds all of its page directories: tifffile passes over what lies beyond the end of a file."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from cellvision.errors import DataError, explain

_BIG = 43
_DESCRIPTION = 270


def check_directories(path: Path, *, max_pages: int) -> None:
    """Raise DataError unless the directories of all pages, and the texts that describe them, lie inside the file.

    A stack cut short would otherwise be an image of fewer channels, or one without names and pixel size.

    Args:
        path: a TIFF or BigTIFF file.
        max_pages: where to stop looking.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        order = "<" if stream.read(2) == b"II" else ">"

        def unpack(form: str, at: int, times: int = 1) -> Iterator[tuple[int, ...]]:
            length = times * struct.calcsize(order + form)
            if at + length > size:
                raise _refuse(path, at + length - size)
            stream.seek(at)
            return struct.iter_unpack(order + form, stream.read(length))

        is_big = next(unpack("H", 2)) == (_BIG,)
        offset, count, entry = ("Q", "Q", "HHQQ") if is_big else ("I", "H", "HHII")
        ((at,),) = unpack(offset, 8 if is_big else 4)
        for _ in range(max_pages):
            if at == 0:
                return
            ((entries,),) = unpack(count, at)
            at += struct.calcsize(f"<{count}")
            for tag, _, length, value in unpack(entry, at, entries):
                if tag == _DESCRIPTION and length > struct.calcsize(f"<{offset}") and value + length > size:
                    raise _refuse(path, value + length - size)
            ((at,),) = unpack(offset, at + entries * struct.calcsize(f"<{entry}"))


def _refuse(path: Path, missing: int) -> DataError:
    got = f"{path} ends at least {missing} bytes early"
    return DataError(explain(got=got, need="a complete file", hint="copy or export the file again"))
