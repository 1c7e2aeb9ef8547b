"""Real fields with no cell, with about 50 and with 1,000 or more, from whatever held-out fields there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import minimum_filter

from cellvision.types import Sample

PIECE_PX = 256
MOST_ACROSS = 8  # pieces of a mosaic
SOME, MANY = 50, 1000  # cells
ANNOTATED = 1400  # of them in the mosaic: no net finds all, and it is to find 1,000


def choose_fields(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """A field without cells, one with about 50 and one with 1,000 or more, by name."""
    some = min(samples, key=lambda sample: abs(len(sample.cell_classes) - SOME))
    return {"blank": [cut_blank(samples)], f"about {SOME}": [some], f"{MANY:,} or more": [build_mosaic(samples)]}


def cut_blank(samples: Sequence[Sample]) -> Sample:
    """The largest square piece (in steps of 32 px) of a field that holds no cell."""
    for side in range(512, 0, -32):
        for sample in samples:
            height, width = sample.label_image.shape
            if min(height, width) < side:
                continue
            # At each place whether the square that starts there is free.
            is_free = minimum_filter((sample.label_image == 0).astype(np.uint8), side, origin=-((side - 1) // 2) - 1)
            places = np.argwhere(is_free[: height - side + 1, : width - side + 1])
            if len(places):
                (top, left) = places[0]
                piece = cut_piece(sample, top, left, side)
                assert not piece.label_image.any()
                return piece
    raise SystemExit("no held-out field has 32 x 32 px without a cell")


def cut_piece(sample: Sample, top: int, left: int, side: int) -> Sample:
    """A square of a field, with its cells numbered anew."""
    rows, columns = slice(top, top + side), slice(left, left + side)
    kept, labels = np.unique(sample.label_image[rows, columns], return_inverse=True)
    labels = labels.reshape(side, side) + (kept[0] != 0)
    return replace(
        sample,
        name=f"{sample.name}_{top}_{left}",
        image=np.ascontiguousarray(sample.image[:, rows, columns]),
        label_image=labels.astype(np.int32),
        cell_classes=sample.cell_classes[kept[kept > 0] - 1],
    )


def build_mosaic(samples: Sequence[Sample]) -> Sample:
    """The smallest square of the densest pieces of the fields that holds 1,400 cells."""
    pieces = [
        cut_piece(sample, top, left, PIECE_PX)
        for sample in samples
        for top in range(0, sample.label_image.shape[0] - PIECE_PX + 1, PIECE_PX)
        for left in range(0, sample.label_image.shape[1] - PIECE_PX + 1, PIECE_PX)
    ]
    pieces.sort(key=lambda piece: -len(piece.cell_classes))
    counts = np.cumsum([len(piece.cell_classes) for piece in pieces])
    across = next((n for n in range(1, MOST_ACROSS + 1) if counts[: n * n][-1] >= ANNOTATED), None)
    if across is None or across**2 > len(pieces):
        raise SystemExit(f"the held-out fields hold {counts[-1]} cells in pieces of {PIECE_PX} px; need {ANNOTATED}")
    used, before = pieces[: across**2], np.concatenate([[0], counts])
    labels = [np.where(piece.label_image > 0, piece.label_image + before[at], 0) for at, piece in enumerate(used)]
    lines = range(0, across**2, across)
    return replace(
        used[0],
        name="mosaic",
        group="mosaic",
        image=np.block([[piece.image for piece in used[at : at + across]] for at in lines]),
        label_image=np.block([labels[at : at + across] for at in lines]).astype(np.int32),
        cell_classes=np.concatenate([piece.cell_classes for piece in used]),
    )


def describe_fields(fields: Mapping[str, Sequence[Sample]]) -> dict[str, str]:
    """Number of fields, their sizes and their true cells, by name."""
    facts = {}
    for name, samples in fields.items():
        sizes = sorted({"{1} x {2}".format(*sample.image.shape) for sample in samples})
        cells = sum(len(sample.cell_classes) for sample in samples)
        facts[name] = f"{len(samples)} of {', '.join(sizes)} px with {cells:,} cells"
    return facts
