"""Generated dense cells with exact truth: any number in a field, in phase contrast or fluorescence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from cellvision.bundle import Channel
from cellvision.data.dataset import to_classes
from cellvision.data.synthetic.cell_looks import PLANES, paint_planes
from cellvision.data.synthetic.colony import LEAST_PX, grow_colony
from cellvision.data.synthetic.generating import build_generator, check_ranges
from cellvision.errors import ConfigError, check_choice, explain
from cellvision.types import Sample

_DRAWING_VERSION = 1
"""Part of the fingerprint; raise it whenever the same settings no longer give the same bytes."""

_WELL_STREAM = 1
MAX_TYPES = 6


@dataclass(frozen=True, kw_only=True)
class SyntheticCells:
    """Fields of cells that touch in islands; a CellDataset.

    Same settings, same bytes, in any process. A field depends on the settings, its index and the seed alone, never on
    how many fields there are. A field holds exactly as many cells as are drawn for it: where they would not fit,
    they are smaller. No pixel belongs to two cells, and every cell is one piece.

    Attributes:
        fields: number of fields.
        height, width: of a field, in px.
        seed: 0 or a positive whole number.
        cells: least and most cells of a field; a field has room for one per 12 px.
        cell_types: names of the classes; cells of later ones are more stretched, larger and dimmer. Each cell's is
            drawn with equal chance.
        planes: one or two of "phase", "body" and "nuclear", one per channel. Phase contrast alone is uint8, all
            else uint16.
        diameter_um: smallest and largest mean diameter of cells before others cut them.
        pixel_size_um: edge of a pixel.
        packing: least and most share of the ground that cells cover in their islands, drawn per field.
        fields_per_well: neighbouring fields that share a well, thus group and strength of the stain.
        falloff: typical loss of light towards the corners, 0..0.9.

    Raises:
        ConfigError: a setting is out of its range.

    Example:
        >>> sample = SyntheticCells(fields=2, height=64, width=96, cells=(30, 30)).sample(0)
        >>> sample.image.shape, sample.image.dtype.name, len(np.unique(sample.label_image))
        ((1, 64, 96), 'uint8', 31)
    """

    fields: int = 32
    height: int = 256
    width: int = 256
    seed: int = 0
    cells: tuple[int, int] = (20, 160)
    cell_types: tuple[str, ...] = ("cell",)
    planes: tuple[str, ...] = ("phase",)
    diameter_um: tuple[float, float] = (14.0, 26.0)
    pixel_size_um: float = 1.24
    packing: tuple[float, float] = (0.6, 0.95)
    fields_per_well: int = 1
    falloff: float = 0.2

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        room = self.height * self.width // LEAST_PX
        if self.cells[1] > room:
            raise ConfigError(
                explain(
                    got=f"synthetic data setting cells={self.cells} in {self.height}x{self.width} px",
                    need=f"at most {room}, one per {LEAST_PX} px",
                    hint=f"cells=[0,{room}]",
                )
            )
        for plane in self.planes:
            check_choice("synthetic data setting planes", plane, PLANES)
        if not 1 <= len(self.planes) <= 2 or len(set(self.planes)) < len(self.planes):
            got = f"synthetic data setting planes={list(self.planes)}"
            raise ConfigError(explain(got=got, need="one or two different ones", hint="planes=[phase]"))
        if len(self.classes) > MAX_TYPES + 1:
            got = f"synthetic data setting cell_types={list(self.cell_types)}"
            raise ConfigError(explain(got=got, need=f"at most {MAX_TYPES}", hint="cell_types=[round,long]"))

    def __len__(self) -> int:
        return self.fields

    @property
    def classes(self) -> tuple[str, ...]:
        """Background and the cell types."""
        return to_classes(self.cell_types)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One per plane."""
        return tuple(Channel(name=plane, role="nuclear" if plane == "nuclear" else "") for plane in self.planes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name per field; the seed is part of it, so that sets of different seeds can be joined."""
        return tuple(f"cells_{self.seed}_{index:04d}" for index in range(self.fields))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The well of each field."""
        return tuple(f"cells_{self.seed}_well_{index // self.fields_per_well:04d}" for index in range(self.fields))

    def fingerprint(self) -> str:
        """SHA-256 of everything that the fields follow from."""
        settings = json.dumps({"drawing_version": _DRAWING_VERSION, "kind": "cells", **asdict(self)}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()

    def sample(self, index: int) -> Sample:
        """Draw one field.

        Raises:
            IndexError: ``index`` is not in 0..fields-1, which also ends a plain ``for`` loop over the set.
        """
        if not 0 <= index < self.fields:
            raise IndexError(f"field {index} of {self.fields}")
        rng = build_generator(self.seed, index)
        count = int(rng.integers(self.cells[0], self.cells[1] + 1))
        kinds = rng.integers(1, len(self.classes), size=count)
        colony = grow_colony(
            rng,
            radii_px=rng.uniform(*self.diameter_um, count) / 2 / self.pixel_size_um * (0.85 + 0.15 * kinds),
            stretches=1.3 + 0.7 * (kinds - 1),
            packing=rng.uniform(*self.packing),
            height=self.height,
            width=self.width,
        )
        return Sample(
            name=self.names[index],
            group=self.groups[index],
            image=paint_planes(
                rng,
                colony,
                planes=tuple(self.planes),
                gains=self._draw_gains(rng, index, kinds),
                pixel_size_um=self.pixel_size_um,
                falloff=self.falloff,
            ),
            label_image=colony.label_image,
            cell_classes=kinds.astype(np.int64),
            pixel_size_um=self.pixel_size_um,
        )

    def _draw_gains(self, rng: np.random.Generator, index: int, kinds: np.ndarray) -> np.ndarray:
        """(N,) brightness of each cell: its well's, times its type's, times its own."""
        well = build_generator(self.seed, index // self.fields_per_well, _WELL_STREAM).lognormal(0.0, 0.15)
        return well * 0.8 ** (kinds - 1) * rng.lognormal(0.0, 0.2, len(kinds))


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("fields", 1, 10**7),
    ("height", 1, 2**15),
    ("width", 1, 2**15),
    ("seed", 0, 2**63 - 1),
    ("cells", 0, 10**6),
    ("diameter_um", 0.1, 1000),
    ("pixel_size_um", 0.01, 100),
    ("packing", 0.1, 1),
    ("fields_per_well", 1, 10**7),
    ("falloff", 0, 0.9),
)
