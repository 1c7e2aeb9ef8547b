"""Generated live/dead fluorescence with exact truth: the README and the tests need no download."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from cellvision.bundle import Channel
from cellvision.data.synthetic.generating import build_generator, check_ranges
from cellvision.data.synthetic.optics import Camera, draw_illumination, record_counts, spread_light
from cellvision.data.synthetic.phantom import DEAD, LIVE, STAINS, DrawnCell, draw_cell, draw_debris, place_cells
from cellvision.errors import ConfigError, explain
from cellvision.types import Sample

_DRAWING_VERSION = 1
"""Part of the fingerprint; raise it whenever the same settings no longer give the same bytes."""

_WELL_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class SyntheticLiveDead:
    """Fields of live and dead cells in three stains: Hoechst (all nuclei), calcein (live bodies), PI (dead nuclei).

    Same settings, same bytes, in any process. A field depends on the settings, its index and the seed alone, never on
    how many fields there are. Labels cover whole cells, not nuclei. Thresholding the dead stain makes mistakes here
    (bleed-through, debris, leaky cells, uneven light), all of which the three channels together can resolve.

    Attributes:
        fields: number of fields.
        height, width: of a field, in px.
        seed: 0 or a positive whole number.
        cells: least and most cells offered to a field; crowded fields hold as many as find a place.
        dead_fraction: least and most share of dead cells; drawn once per well.
        ambiguous_fraction: share of leaky cells, live with some PI or dead with some calcein.
        debris: least and most pieces of bright dirt per field.
        diameter_um: smallest and largest diameter of live cells; dead ones shrink to 60-85 % of it.
        pixel_size_um: edge of a pixel.
        fields_per_well: neighbouring fields that share a well, thus group, staining and share of dead cells.
        bleed_through: (3, 3), row = channel, column = stain: share of a stain's light that the channel sees.
        falloff: typical loss of light towards the corners, 0..0.9.
        counts_per_photon, offset_counts, read_noise_counts, bit_depth: see ``optics.Camera``.

    Raises:
        ConfigError: a setting is out of its range.

    Example:
        >>> sample = SyntheticLiveDead(fields=2, height=64, width=96, cells=(3, 6)).sample(0)
        >>> sample.image.shape, sample.image.dtype.name, sample.label_image.max() == len(sample.cell_classes)
        ((3, 64, 96), 'uint16', np.True_)
    """

    fields: int = 32
    height: int = 256
    width: int = 256
    seed: int = 0
    cells: tuple[int, int] = (12, 40)
    dead_fraction: tuple[float, float] = (0.1, 0.6)
    ambiguous_fraction: float = 0.08
    debris: tuple[int, int] = (2, 14)
    diameter_um: tuple[float, float] = (14.0, 22.0)
    pixel_size_um: float = 0.65
    fields_per_well: int = 1
    bleed_through: tuple[tuple[float, ...], ...] = ((1.0, 0.02, 0.03), (0.07, 1.0, 0.02), (0.03, 0.14, 1.0))
    falloff: float = 0.5
    counts_per_photon: float = 4.0
    offset_counts: float = 100.0
    read_noise_counts: float = 6.0
    bit_depth: int = 16

    classes: ClassVar[tuple[str, ...]] = ("background", "live", "dead")
    channels: ClassVar[tuple[Channel, ...]] = (
        Channel(name="hoechst", role="nuclear"),
        Channel(name="calcein", role="live"),
        Channel(name="pi", role="dead"),
    )

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        rows = [list(row) for row in self.bleed_through]
        if [len(row) for row in rows] != [STAINS] * STAINS or min(map(min, rows)) < 0:
            raise ConfigError(
                explain(
                    got=f"synthetic data setting bleed_through={rows}",
                    need=f"{STAINS} rows of {STAINS} shares, 0 or more",
                    hint="bleed_through=[[1,0,0],[0,1,0],[0,0,1]]",
                )
            )

    def __len__(self) -> int:
        return self.fields

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name per field; the seed is part of it, so that sets of different seeds can be joined."""
        return tuple(f"synthetic_{self.seed}_{index:04d}" for index in range(self.fields))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The well of each field."""
        return tuple(f"synthetic_{self.seed}_well_{index // self.fields_per_well:04d}" for index in range(self.fields))

    def fingerprint(self) -> str:
        """SHA-256 of everything that the fields follow from."""
        settings = json.dumps({"drawing_version": _DRAWING_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()

    def sample(self, index: int) -> Sample:
        """Draw one field.

        Raises:
            IndexError: ``index`` is not in 0..fields-1, which also ends a plain ``for`` loop over the set.
        """
        if not 0 <= index < self.fields:
            raise IndexError(f"field {index} of {self.fields}")
        rng = build_generator(self.seed, index)
        gains, dead_fraction = self._draw_well(index // self.fields_per_well)
        drawn = self._draw_cells(rng, dead_fraction)
        label_image, kinds, emission = place_cells(rng, drawn, height=self.height, width=self.width)
        emission += draw_debris(
            rng,
            pieces=int(rng.integers(self.debris[0], self.debris[1] + 1)),
            height=self.height,
            width=self.width,
            pixel_size_um=self.pixel_size_um,
        )
        return Sample(
            name=self.names[index],
            group=self.groups[index],
            image=self._take_picture(rng, gains[:, None, None] * emission),
            label_image=label_image,
            cell_classes=kinds,
            pixel_size_um=self.pixel_size_um,
        )

    def _draw_well(self, well: int) -> tuple[np.ndarray, float]:
        """Staining strength, (STAINS,) float32 around 1, and the share of dead cells: what fields of a well share."""
        rng = build_generator(self.seed, well, _WELL_STREAM)
        return rng.lognormal(0.0, 0.25, STAINS).astype(np.float32), rng.uniform(*self.dead_fraction)

    def _draw_cells(self, rng: np.random.Generator, dead_fraction: float) -> list[DrawnCell]:
        cells = []
        for _ in range(rng.integers(self.cells[0], self.cells[1] + 1)):
            kind = DEAD if rng.random() < dead_fraction else LIVE
            radius_px = rng.uniform(*self.diameter_um) / 2 / self.pixel_size_um
            ambiguous = bool(rng.random() < self.ambiguous_fraction)
            cells.append(draw_cell(rng, kind=kind, radius_px=radius_px, ambiguous=ambiguous))
        return cells

    def _take_picture(self, rng: np.random.Generator, emission: np.ndarray) -> np.ndarray:
        shares = np.asarray(self.bleed_through, np.float32)
        light = spread_light(rng, emission, bleed_through=shares, pixel_size_um=self.pixel_size_um)
        light *= draw_illumination(rng, channels=STAINS, height=self.height, width=self.width, falloff=self.falloff)
        camera = Camera(
            counts_per_photon=self.counts_per_photon,
            offset_counts=self.offset_counts,
            read_noise_counts=self.read_noise_counts,
            bit_depth=self.bit_depth,
        )
        return record_counts(rng, light, camera)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("fields", 1, 10**7),
    ("height", 1, 2**15),
    ("width", 1, 2**15),
    ("seed", 0, 2**63 - 1),
    ("cells", 0, 10**6),
    ("dead_fraction", 0, 1),
    ("ambiguous_fraction", 0, 1),
    ("debris", 0, 10**6),
    ("diameter_um", 0.1, 1000),
    ("pixel_size_um", 0.01, 100),
    ("fields_per_well", 1, 10**7),
    ("falloff", 0, 0.9),
    ("counts_per_photon", 0.01, 1000),
    ("offset_counts", 0, 10**4),
    ("read_noise_counts", 0, 10**4),
    ("bit_depth", 10, 16),
)
