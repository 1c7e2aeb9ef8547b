"""Why a request is not answered: an HTTP status and one sentence that says nothing of the server's files."""

from __future__ import annotations

import re
from pathlib import Path

from cellvision.errors import BundleError, CellvisionError, ConfigError, DataError, ShapeError, explain

_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)(?: (F|\d+)\b)?")


class Refusal(CellvisionError):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        retry_after: seconds after which the same request may succeed, or None.
    """

    def __init__(self, status: int, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.retry_after = status, retry_after


def to_refusal(error: Exception, *, path: Path, name: str) -> Refusal:
    """The refusal for what went wrong with an uploaded image.

    A file that cannot be read, an image that does not suit the bundle and a setting out of its range are 400, an image
    that would take more memory than allowed 413, a server out of memory 503, all else the server's own fault, 500.

    Args:
        error: as raised on the way from the file to the answer.
        path: of the uploaded file here; the sentence gets ``name`` instead.
        name: what the file is called by who sent it, printable.

    Example:
        >>> error = BundleError("/tmp/x/upload is uint8; need uint16; try: --intensity-scale F, the factor")
        >>> str(to_refusal(error, path=Path("/tmp/x/upload"), name="a.png"))
        'a.png is uint8; need uint16; try: intensity_scale=F, the factor'
    """
    if isinstance(error, MemoryError):
        got = f"no memory left for {name}"
        return Refusal(503, explain(got=got, need="some", hint="the same again in a while"), retry_after=30)
    if isinstance(error, ConfigError) and "memory_mib=" in str(error):
        got, need = f"{name} is too large for this server's memory", "an image that it can work on in parts"
        return Refusal(413, explain(got=got, need=need, hint="save it as tiled TIFF, or cut it"))
    if isinstance(error, Refusal | DataError | BundleError | ConfigError | ShapeError):
        sentence = _OPTION.sub(_to_parameter, str(error).replace(str(path), name).replace(path.name, name))
        return Refusal(error.status if isinstance(error, Refusal) else 400, sentence)
    return Refusal(500, f"{name} could not be worked on; the server's log says why")


def _to_parameter(option: re.Match[str]) -> str:
    """What an option of the command line is called in a query; those of the server itself stay."""
    if option[1].startswith("max-"):
        return option[0]
    value = f"={option[2]}" if option[2] else ""
    return option[1].replace("-", "_") + value
