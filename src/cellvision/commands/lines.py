"""Text that is safe to print on one line."""

from __future__ import annotations


def to_line(text: str) -> str:
    r"""The text with everything that is not printable escaped: a file name must not forge a line or colour of a log.

    Example:
        >>> to_line("field\n1.tif")
        'field\\n1.tif'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
