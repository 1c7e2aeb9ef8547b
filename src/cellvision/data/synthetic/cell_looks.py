"""What a colony looks like: in phase contrast, and in the light of a stain in bodies or nuclei."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cellvision.data.synthetic.colony import Colony
from cellvision.data.synthetic.optics import Camera, draw_illumination, record_counts, spread_light
from cellvision.data.synthetic.phantom import draw_texture

PLANES = ("phase", "body", "nuclear")

# Photons per pixel in the brightest part of a typical cell.
_BODY, _NUCLEAR = 110.0, 70.0
_NUCLEUS = 0.5
"""Radius of a nucleus as a share of its cell's."""

# Grey values of 8 bit: empty ground, depth of the shade of a cell, height of its rim, grain in it, and noise.
_GROUND, _SHADE, _RIM, _GRAIN, _NOISE = 128.0, 34.0, 26.0, 9.0, 2.5
_PHASE_TO_COUNTS = 16.0


def paint_planes(
    rng: np.random.Generator,
    colony: Colony,
    *,
    planes: tuple[str, ...],
    gains: np.ndarray,
    pixel_size_um: float,
    falloff: float,
) -> np.ndarray:
    """(C, H, W) picture of a colony: uint8 if phase contrast is all of it, else uint16.

    Args:
        rng: source of all chance.
        colony: the cells.
        planes: of PLANES, one per channel.
        gains: (N,) brightness of each cell, about 1.
        pixel_size_um: edge of a pixel.
        falloff: typical loss of light towards the corners, 0..0.9.
    """
    gain = np.concatenate([[0.0], gains]).astype(np.float32)[colony.label_image]
    stains = [plane for plane in planes if plane != "phase"]
    counts = dict(zip(stains, _record_stains(rng, colony, stains, gain, pixel_size_um, falloff), strict=True))
    if "phase" in planes:
        phase = _draw_phase(rng, colony, gain, falloff)
        if planes == ("phase",):
            return np.clip(np.rint(phase), 0, 255).astype(np.uint8)[None]
        counts["phase"] = np.clip(np.rint(phase * _PHASE_TO_COUNTS), 0, 2**16 - 1).astype(np.uint16)
    return np.stack([counts[plane] for plane in planes])


def _record_stains(
    rng: np.random.Generator,
    colony: Colony,
    stains: list[str],
    gain: np.ndarray,
    pixel_size_um: float,
    falloff: float,
) -> np.ndarray:
    """(len(stains), H, W) uint16 counts of the camera."""
    height, width = gain.shape
    if not stains:
        return np.empty((0, height, width), np.uint16)
    emission = np.stack([_draw_stain(rng, colony, stain, gain) for stain in stains])
    seen = np.where(np.eye(len(stains), dtype=bool), 1.0, 0.03)
    light = spread_light(rng, emission, bleed_through=seen, pixel_size_um=pixel_size_um)
    light *= draw_illumination(rng, channels=len(stains), height=height, width=width, falloff=falloff)
    return record_counts(rng, light, Camera())


def _draw_stain(rng: np.random.Generator, colony: Colony, stain: str, gain: np.ndarray) -> np.ndarray:
    """(H, W) float32 photons per pixel."""
    if stain == "body":
        dome = np.sqrt(np.clip(1 - colony.depth**2, 0, 1))
        return _BODY * gain * dome * draw_texture(rng, gain.shape, sigma=1.6, depth=0.12)
    nucleus = np.clip(1 - (colony.depth / _NUCLEUS) ** 4, 0, 1)
    return _NUCLEAR * gain * nucleus * draw_texture(rng, gain.shape, sigma=1.1, depth=0.1)


def _draw_phase(rng: np.random.Generator, colony: Colony, gain: np.ndarray, falloff: float) -> np.ndarray:
    """(H, W) float grey values of 8 bit: cells darker than the ground in a bright halo, with a bright rim and grain."""
    dome = np.sqrt(np.clip(1 - colony.depth**2, 0, 1)) * gain
    # The halo is what a phase ring lets through besides: the thickness around, subtracted from the thickness here.
    halo = ndimage.gaussian_filter(dome, 6.0) - dome
    rim = np.exp(-(((colony.depth - 0.85) / 0.12) ** 2)) * (colony.label_image > 0)
    grain = (draw_texture(rng, gain.shape, sigma=0.9, depth=1.0) - 1) * (colony.label_image > 0)
    lamp = draw_illumination(rng, channels=1, height=gain.shape[0], width=gain.shape[1], falloff=falloff)[0]
    picture = _GROUND * lamp / np.median(lamp) + _SHADE * halo + _RIM * rim * gain + _GRAIN * grain
    return picture + _NOISE * rng.standard_normal(gain.shape, dtype=np.float32)
