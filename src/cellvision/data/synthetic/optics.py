"""A simulated fluorescence microscope: light in photons becomes camera counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How photons become counts.

    Attributes:
        counts_per_photon: gain, in counts.
        offset_counts: counts of a dark pixel.
        read_noise_counts: standard deviation of the electronics' noise.
        bit_depth: counts saturate at 2**bit_depth - 1.
    """

    counts_per_photon: float = 4.0
    offset_counts: float = 100.0
    read_noise_counts: float = 6.0
    bit_depth: int = 16


def spread_light(
    rng: np.random.Generator, emission: np.ndarray, *, bleed_through: np.ndarray, pixel_size_um: float
) -> np.ndarray:
    """Light of each channel after filters and lens, (C, H, W) photons per pixel.

    Every channel sees a share of the other stains (``bleed_through``: (C, C), row = channel, column = stain; the
    shares of other stains vary by a third from field to field), blurred by a Gaussian point spread of 0.3-0.45 um
    plus a defocus of up to 0.7 um, and on top a haze: light from out of focus spread over about 15 um, and an even
    background of 4-14 photons.
    """
    channels = len(emission)
    shares = np.where(np.eye(channels, dtype=bool), 1.0, rng.uniform(0.67, 1.33, (channels, channels))) * bleed_through
    light = np.tensordot(shares.astype(np.float32), emission, axes=1)
    defocus_um = 0.7 * rng.random() ** 2
    hazes = rng.uniform(0.08, 0.25, channels)
    backgrounds = rng.uniform(4.0, 14.0, channels)
    for c in range(channels):
        sigma_px = np.hypot(0.3 + 0.075 * c, defocus_um) / pixel_size_um
        haze = _blur_widely(light[c], width_px=max(1, round(15.0 / pixel_size_um)))
        light[c] = ndimage.gaussian_filter(light[c], sigma_px, mode="nearest", truncate=3.0)
        light[c] += hazes[c] * haze + backgrounds[c]
    return light


def draw_illumination(
    rng: np.random.Generator, *, channels: int, height: int, width: int, falloff: float
) -> np.ndarray:
    """Relative brightness of the lamp, (C, H, W) float32, at most about 1: vignette, tilt, and dust shadows.

    Args:
        rng: source of all chance.
        channels: number of planes; each lamp has its own vignette.
        height: of the field, in px.
        width: of the field, in px.
        falloff: typical loss from the brightest place to the corners, 0..0.9.
    """
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    tilt = rng.normal(0, 0.25 * falloff, 2)
    shadows = np.ones((height, width))
    for _ in range(rng.integers(0, 3)):
        cy, cx, size, depth = *rng.uniform(-1, 1, 2), rng.uniform(0.06, 0.16), rng.uniform(0.05, 0.16)
        shadows *= 1 - depth / (1 + (((y - cy) ** 2 + (x - cx) ** 2) / size**2) ** 3)
    lamps = []
    for _ in range(channels):
        cy, cx = rng.normal(0, 0.25, 2)
        loss = falloff * rng.uniform(0.6, 1.3)
        lamp = 1 - loss * ((y - cy) ** 2 + (x - cx) ** 2) / 2 + tilt[0] * y / 2 + tilt[1] * x / 2
        lamps.append(np.clip(lamp, 0.05, None) * shadows)
    return np.stack(lamps).astype(np.float32)


def record_counts(rng: np.random.Generator, photons: np.ndarray, camera: Camera) -> np.ndarray:
    """Camera counts, (C, H, W) uint16: Poisson photons, gain, offset, Gaussian read noise, saturation.

    Args:
        rng: source of all chance.
        photons: (C, H, W) expected photons per pixel, >= 0.
        camera: see Camera.
    """
    counts = rng.poisson(photons) * camera.counts_per_photon + camera.offset_counts
    counts += camera.read_noise_counts * rng.standard_normal(photons.shape, dtype=np.float32)
    return np.clip(np.rint(counts), 0, 2**camera.bit_depth - 1).astype(np.uint16)


def _blur_widely(light: np.ndarray, *, width_px: int) -> np.ndarray:
    # Two box filters cost the same at any width; a Gaussian this wide would take most of the time of a field.
    return ndimage.uniform_filter(ndimage.uniform_filter(light, width_px, mode="nearest"), width_px, mode="nearest")
