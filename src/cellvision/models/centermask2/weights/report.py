"""What became of the tensors of a net and of a file when one was loaded from the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MOST_PARTS = 12


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The account of one loading; each tensor of the net is in one of the first four.

    Attributes:
        source: of the weights, as it is to be shown.
        loaded: names in the net that have the file's values, the adapted ones included.
        filled: {name in the net: why it has a fixed value though the file lacks it}.
        skipped: {name in the net: why the file's tensor does not fit}; left as they began.
        missing: names in the net that the file lacks; left as they began.
        adapted: {name in the net: how the file's values were changed to fit}.
        unused: names in the file that the net has no place for.
        scheme: whose names the file has, one of SCHEMES.
        order: "bgr" or "rgb", how the weights know an image's channels; None for other than three channels.
        is_order_given: whether the caller said so; otherwise the scheme does.
        pixel_mean, pixel_std: of the images that the weights know, per channel on the scale 0..255, where the file or
            timm says it, in the order of the net's channels.
    """

    source: str
    loaded: tuple[str, ...]
    filled: dict[str, str]
    skipped: dict[str, str]
    missing: tuple[str, ...]
    adapted: dict[str, str]
    unused: tuple[str, ...]
    scheme: str = "published"
    order: str | None = None
    is_order_given: bool = False
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    @property
    def total(self) -> int:
        """Tensors of the net."""
        return len(self.loaded) + len(self.filled) + len(self.skipped) + len(self.missing)

    def to_lines(self) -> list[str]:
        """The account in a few lines, long lists summed up by part of the net.

        Example:
            >>> report = LoadReport(
            ...     source="a.pth", loaded=("stem.w",), filled={}, skipped={"top.w": "80 classes in the file, 2 here"},
            ...     missing=("head.1.w", "head.1.b", "head.2.w"), adapted={}, unused=())
            >>> for line in report.to_lines(): print(line)
            a.pth: loaded 1 of 5 tensors
            does not fit, left as it began: top.w (80 classes in the file, 2 here)
            not in the file, left as they began: head.1 (2 tensors), head.2.w
        """
        lines = [f"{self.source}: loaded {len(self.loaded)} of {self.total} tensors"]
        lines += [f"changed to fit: {part}" for part in _list_reasons(self.adapted)]
        lines += [f"not in the file, set: {part}" for part in _list_reasons(self.filled)]
        lines += [f"does not fit, left as it began: {part}" for part in _list_reasons(self.skipped)]
        if self.missing:
            lines.append(f"not in the file, left as they began: {_sum_up(self.missing)}")
        if self.unused:
            lines.append(f"in the file, of no use here: {_sum_up(self.unused)}")
        if self.order is not None:
            reason = "as set" if self.is_order_given else f"as {self.scheme} weights are"
            lines.append(f"weights_order={self.order}: {reason}")
        return lines


def _list_reasons(reasons: dict[str, str]) -> list[str]:
    """One part per reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"{_sum_up(each)} ({reason})" for reason, each in names.items()]


def _sum_up(names: Sequence[str]) -> str:
    """The names, those of one part of the net as a number; parts as large as needed to have few of them."""
    for depth in (None, 2, 1):
        parts: dict[str, list[str]] = {}
        for name in names:
            words = name.split(".")[:-1] or [name]
            parts.setdefault(".".join(words[:depth]), []).append(name)
        if len(parts) <= _MOST_PARTS:
            break
    return ", ".join(each[0] if len(each) == 1 else f"{part} ({len(each)} tensors)" for part, each in parts.items())
