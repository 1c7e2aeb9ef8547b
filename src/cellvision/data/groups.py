"""Which fields show the same thing, told from their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cellvision.data.dataset import list_faults
from cellvision.errors import ConfigError, DataError, explain


def find_groups(names: Sequence[str], pattern: str | None, *, what: str = "file stem") -> tuple[str, ...]:
    """Group of each name: what the first parentheses of ``pattern`` match, or the name itself where pattern is None.

    Args:
        names: file stems or file names.
        pattern: regular expression, found anywhere in the name.
        what: how an error calls the names.

    Raises:
        ConfigError: the pattern is no regular expression, or has no parentheses.
        DataError: names that the pattern does not match; all of them are counted, and the first 10 listed.

    Example:
        >>> find_groups(["A172_Phase_A7_1_00d00h00m_1.tif"], "^(.*?_Phase_[A-Z]+[0-9]+)_")
        ('A172_Phase_A7',)
    """
    if pattern is None:
        return tuple(names)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            explain(got=f"group_pattern {pattern!r}: {error}", need="a regular expression", hint='"(.*)_s[0-9]+"')
        ) from error
    if not expression.groups:
        raise ConfigError(
            explain(got=f"group_pattern {pattern!r} has no group", need="one in parentheses", hint=f'"({pattern})"')
        )
    found = [expression.search(name) for name in names]
    if unmatched := [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]:
        raise DataError(
            explain(
                got=f"group_pattern {pattern!r} does not match {list_faults(unmatched)}",
                need=f"a match in each {what}",
                hint="a wider group_pattern, or a narrower pattern",
            )
        )
    return tuple(match[1] for match in found if match is not None)
