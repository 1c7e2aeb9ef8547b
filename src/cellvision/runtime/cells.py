"""The cells of one image: one record, one row per cell, whatever net and backend found them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cellvision.errors import BundleError, ShapeError, explain
from cellvision.runtime.maps.splitting import CellSums
from cellvision.runtime.viability import Viability, compute_viability


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """What was found in one image, as columns: entry i of each belongs to the cell ``label[i]``.

    Coordinates have pixel centres at whole numbers: the top left pixel's centre is (0, 0), and a cell of that pixel
    alone has its centroid there.

    Attributes:
        shape: (H, W) of the image.
        classes: names, background first.
        channels: names of the channels in the order of ``mean_intensity``.
        kind: "semantic", "viability" or "instance".
        pixel_size_um: edge of a pixel in micrometres, or None where unknown.
        label_image: (H, W) int32, 0 = background; None where it was streamed to a file.
        label: (N,) int32, ascending.
        class_id: (N,) int64, index into ``classes``, 1..K-1.
        area_px: (N,) int64.
        centroid_y_px, centroid_x_px: (N,) float64.
        bbox: (N, 4) int64, top, left, bottom, right in whole pixels; bottom and right are one past the last.
        mean_intensity: (N, C) float64, in the image's own counts.
        probabilities: (N, K-1) float64 in 0..1, of each class but the background; rows sum to 1.
        tiles: number of tiles that the image was worked on in.
        score: (N,) float64 in 0..1, how sure the net is of each cell; None for nets that do not find cells themselves.
        notes: what to know of how they were found, a sentence each: tiles made small for lack of memory, or so full of
            cells that more may be there.
    """

    shape: tuple[int, int]
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    kind: str
    pixel_size_um: float | None
    label_image: np.ndarray | None
    label: np.ndarray
    class_id: np.ndarray
    area_px: np.ndarray
    centroid_y_px: np.ndarray
    centroid_x_px: np.ndarray
    bbox: np.ndarray
    mean_intensity: np.ndarray
    probabilities: np.ndarray
    tiles: int = 1
    score: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.label)

    @property
    def p_live(self) -> np.ndarray | None:
        """(N,) float64 in 0..1, or None for a net that does not tell live from dead."""
        return self.probabilities[:, self.classes.index("live") - 1] if self.has_viability else None

    @property
    def has_viability(self) -> bool:
        """Whether these cells are told apart as live and dead; see `tells_viability`."""
        return tells_viability(self.kind, self.classes)

    @property
    def area_um2(self) -> np.ndarray | None:
        """(N,) float64 in square micrometres, or None where the pixel size is unknown."""
        return None if self.pixel_size_um is None else self.area_px * self.pixel_size_um**2

    def count(self, class_name: str) -> int:
        """Number of cells of a class."""
        return int(np.count_nonzero(self.class_id == self.classes.index(class_name)))

    def viability(self, *, confidence: float = 0.95) -> Viability:
        """Share of live cells with its Wilson interval; undefined (None) without cells.

        Raises:
            BundleError: the net does not tell live from dead.
        """
        if not self.has_viability:
            raise BundleError(
                explain(
                    got=f"cells of the classes {', '.join(self.classes[1:])}",
                    need="a viability bundle",
                    hint="a bundle trained with data=livedead",
                )
            )
        return compute_viability(self.count("live"), self.count("dead"), confidence=confidence)

    def filter(self, keep: np.ndarray) -> Cells:
        """The cells where ``keep`` is True. They keep their labels; the others leave the label image too.

        Args:
            keep: (N,) bool, e.g. ``cells.area_px > 100``.

        Raises:
            ShapeError: not one truth value per cell.
        """
        if keep.shape != (len(self),) or keep.dtype != bool:
            raise ShapeError(
                explain(
                    got=f"a mask of {keep.dtype} and shape {keep.shape}",
                    need=f"bool of shape ({len(self)},)",
                    hint="cells.filter(cells.area_px > 100)",
                )
            )
        columns = {name: value[keep] for name, value in vars(self).items() if name in _COLUMNS and value is not None}
        label_image = self.label_image
        if label_image is not None:
            table = np.zeros(int(self.label.max(initial=0)) + 1, np.int32)
            table[columns["label"]] = columns["label"]
            label_image = table[label_image]
        return replace(self, label_image=label_image, **columns)

    def to_rows(self) -> Iterator[dict[str, str | int | float | None]]:
        """One dict per cell, keys in the order of the per-cell table; None where a value is unknown."""
        area_um2, p_live = self.area_um2, self.p_live
        for i in range(len(self)):
            row: dict[str, str | int | float | None] = {
                "label": int(self.label[i]),
                "class": self.classes[self.class_id[i]],
                "area_px": int(self.area_px[i]),
                "area_um2": None if area_um2 is None else float(area_um2[i]),
                "centroid_y_px": float(self.centroid_y_px[i]),
                "centroid_x_px": float(self.centroid_x_px[i]),
            }
            row |= {
                f"mean_{name}": float(value) for name, value in zip(self.channels, self.mean_intensity[i], strict=True)
            }
            if p_live is not None:
                row["p_live"] = float(p_live[i])
            if self.score is not None:
                row["score"] = float(self.score[i])
            yield row


_COLUMNS = (
    "label", "class_id", "area_px", "centroid_y_px", "centroid_x_px", "bbox", "mean_intensity", "probabilities",
    "score",
)  # fmt: skip


def tells_viability(kind: str, classes: tuple[str, ...]) -> bool:
    """Whether a net of this kind counts live and dead cells: viability nets, and instance nets of just those classes.

    A semantic net does not, whatever its classes are called: its cells are connected regions, so a live and a dead cell
    that touch count as one.
    """
    return kind == "viability" or (kind == "instance" and set(classes[1:]) == {"live", "dead"})


def index_classes(cells: Cells) -> np.ndarray:
    """(largest label + 1,) uint8: class id by label, 0 for the background and for labels that do not occur."""
    table = np.zeros(int(cells.label.max(initial=0)) + 1, np.uint8)
    table[cells.label] = cells.class_id
    return table


def to_class_map(cells: Cells) -> np.ndarray:
    """(H, W) uint8: class of every pixel, 0 = background, as a semantic net would give it.

    Where detections overlap, the pixel has the class of the cell that it was painted with: the best one there; see
    `paint_detections`.

    Args:
        cells: with their label image.

    Example:
        >>> from cellvision.runtime.maps.splitting import measure_cells
        >>> maps = np.array([[[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]]], np.float32)
        >>> sums = measure_cells(np.array([[0, 1, 2]]), maps, maps)
        >>> to_class_map(build_cells(sums, classes=("background", "round", "flat"), channels=("a", "b", "c"),
        ...     kind="semantic", live_threshold=0.5, shape=(1, 3), label_image=np.array([[0, 1, 2]]),
        ...     pixel_size_um=None))
        array([[0, 1, 2]], dtype=uint8)
    """
    assert cells.label_image is not None, "cells were streamed to a file"
    return index_classes(cells)[cells.label_image]


def build_cells(
    sums: CellSums,
    *,
    classes: tuple[str, ...],
    channels: tuple[str, ...],
    kind: str,
    live_threshold: float,
    shape: tuple[int, int],
    label_image: np.ndarray | None,
    pixel_size_um: float | None,
) -> Cells:
    """The record of cells 1..N from their sums.

    A cell of a viability net is live where its P(live) reaches ``live_threshold``, else dead; a cell of a semantic net
    has its most probable class.

    Args:
        sums: of N cells, none of them empty.
        classes: background first; "live" and "dead" among them for a viability net.
        channels: names, one per channel in ``sums``.
        kind: "semantic", "viability" or "instance".
        live_threshold: in 0..1; not looked at for a semantic net.
        shape: (H, W) of the image.
        label_image: (H, W) int32 with labels 1..N, or None.
        pixel_size_um: of the image, or None.
    """
    area = sums.area[:, None]
    probabilities = sums.probability / area
    return Cells(
        shape=shape,
        classes=classes,
        channels=channels,
        kind=kind,
        pixel_size_um=pixel_size_um,
        label_image=label_image,
        label=np.arange(1, len(area) + 1, dtype=np.int32),
        class_id=choose_classes(probabilities, classes, live_threshold if kind == "viability" else None),
        area_px=sums.area,
        centroid_y_px=sums.sum_y / sums.area,
        centroid_x_px=sums.sum_x / sums.area,
        bbox=np.stack([sums.top, sums.left, sums.bottom, sums.right], axis=1),
        mean_intensity=sums.intensity / area,
        probabilities=probabilities,
    )


def choose_classes(probabilities: np.ndarray, classes: tuple[str, ...], live_threshold: float | None) -> np.ndarray:
    """(N,) int64 class ids from (N, K-1) probabilities: the likeliest, or live and dead by a threshold on P(live)."""
    if live_threshold is None:
        return probabilities.argmax(axis=1) + 1
    live, dead = classes.index("live"), classes.index("dead")
    # Rounded in the sum of thousands of pixels, a P(live) that is the threshold in every pixel must still reach it.
    return np.where(probabilities[:, live - 1] >= live_threshold - 1e-9, live, dead)
