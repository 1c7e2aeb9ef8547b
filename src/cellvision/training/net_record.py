"""What a checkpoint tells of its net, from which that and its bundle are made again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cellvision.bundle import Channel, Splitting, check_shared
from cellvision.bundle.checks import check, check_whole

RECORD_KEY = "cellvision"
"""Where it stands in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class NetRecord:
    """Plain data in a checkpoint from which the net and its bundle are made again.

    Attributes:
        net: arguments of ``build_model``.
        channels: what the net's input channels are.
        image_dtypes: dtypes whose counts mean what the training counts meant.
        pixel_size_um: of the training images, or None.
        splitting: how cells are separated.
        live_threshold: a cell is live where P(live) reaches it.
        nucleus_margin_px: px from a nucleus to the annotated outline.
        fingerprint: of the training data.
        settings: of the run, what a resumed run must not change.
        recipe: compression records, oldest first.
        accuracy: latest validation scores; in the best checkpoint of a finished run the final ones, test/.. with a test
            split.
        long_cell_px: length that all but one cell in a thousand of the training fields stay below; 0 where unknown.
    """

    net: dict[str, Any]
    channels: tuple[Channel, ...]
    image_dtypes: tuple[str, ...]
    pixel_size_um: float | None
    splitting: Splitting
    live_threshold: float
    nucleus_margin_px: int
    fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: tuple[dict[str, Any], ...] = ()
    accuracy: dict[str, float] = field(default_factory=dict)
    long_cell_px: int = 0

    def __post_init__(self) -> None:
        check_shared(self)  # also of what the data say, before anything is trained

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists of plain values, loadable as weights only."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> NetRecord:
        """The record that ``to_plain`` wrote.

        Raises:
            BundleError: an entry is of another kind, or out of range.
            AttributeError, KeyError, TypeError: one is missing, or none of these.
        """
        record = cls(
            **{
                **plain,
                "channels": tuple(Channel(**c) for c in plain["channels"]),
                "splitting": Splitting(**plain["splitting"]),
                "image_dtypes": tuple(plain["image_dtypes"]),
                "recipe": tuple(plain["recipe"]),
            }
        )
        for name in ("net", "settings", "accuracy"):
            check(isinstance(plain[name], dict), name, plain[name], "names with values", "{}")
        check(isinstance(record.fingerprint, str), "fingerprint", record.fingerprint, "a text", "the data's")
        check_whole("long_cell_px", record.long_cell_px, least=0, usual=0)
        return record
