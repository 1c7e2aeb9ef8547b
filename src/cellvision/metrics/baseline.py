"""Live and dead cells without a net: Otsu thresholds and a watershed, the bar that every net has to clear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from cellvision.bundle import Channel
from cellvision.errors import ConfigError, DataError, ShapeError, explain
from cellvision.types import IGNORE


@dataclass(frozen=True, kw_only=True, eq=False)
class BaselineCells:
    """Cells in the form that the metrics take.

    Attributes:
        label_image: (H, W) int32, 0 = background, 1..N = one cell each.
        cell_classes: (N,) int64; entry i is the class of label i + 1, or IGNORE where that label has no pixel.
        p_live: (N,) float64 in 0..1, 0.5 at the threshold. A ranking for AUROC, not a probability.
    """

    label_image: np.ndarray
    cell_classes: np.ndarray
    p_live: np.ndarray


class OtsuBaseline:
    """The bench recipe: threshold the stains (Otsu 1979), split touching cells by a watershed, look at the dead stain.

    What counts as cell depends on the roles of the channels:

    - "nuclear" (Hoechst with propidium iodide, say): a cell is a nucleus, grown by ``expand_px``.
    - "nuclear" and "live" (calcein fills live cells, dead ones show as nuclei): the union of the grown nuclei and the
      live stain; every nucleus seeds one cell, and stain without a nucleus is one cell per connected piece.
    - "live" without "nuclear": the union of live and dead stain, for the dead cells are dark in the live one.

    These masks are thresholded on square roots of counts: photon noise grows with the root, and on plain counts Otsu
    puts the threshold between bright and dim cells as soon as a few are very bright.

    A cell is dead where its dead stain, averaged over its nucleus (over the cell where no nucleus is seen), exceeds the
    Otsu threshold of the field's pixels, on plain counts. Over pixels and not over cells: a field of one class only has
    no two groups of cells to tell apart, but still has cells and ground.

    Otsu splits any histogram, pure noise too (the medians of its halves are then 2.3 to 2.6 sigmas of the darker half
    apart). A threshold is therefore accepted only where the brighter side stands out by ``min_contrast`` such sigmas;
    else the field has nothing of that stain: no cells, or none dead. ``min_contrast=0`` is the textbook method. A field
    without dead cells whose dead channel shows the bleed-through of another stain still fools it, as it fools everyone
    who thresholds field by field.
    """

    def __init__(
        self,
        channels: tuple[Channel, ...],
        *,
        classes: tuple[str, ...] = ("background", "live", "dead"),
        smoothing_px: float = 1.0,
        background_px: int = 101,
        min_area_px: int = 20,
        seed_distance_px: int = 5,
        expand_px: int = 0,
        min_contrast: float = 3.0,
    ) -> None:
        """Take the channels of the images to come.

        Args:
            channels: in the images' order; the roles "nuclear", "live" and "dead" are used.
            classes: background first; must contain "live" and "dead".
            smoothing_px: sigma of the Gaussian that calms the noise, 0 or more.
            background_px: edge of the window whose opening is the ground; wider than the widest cell.
            min_area_px: smaller pieces are dropped.
            seed_distance_px: seeds of two cells are at least this far apart.
            expand_px: growth of nuclei where the truth outlines whole cells, 0 or more.
            min_contrast: see above, in noise sigmas, 0 or more.

        Raises:
            ConfigError: no channel has the role "dead", or a class is missing.
        """
        self._roles = {channel.role: index for index, channel in enumerate(channels) if channel.role}
        if "dead" not in self._roles:
            raise ConfigError(_explain_role(channels, '"dead"'))
        if not {"live", "dead"} <= set(classes):
            raise ConfigError(
                explain(got=f"classes {', '.join(classes)}", need="live and dead among them", hint="data=livedead")
            )
        self.channels = channels
        self.classes = classes
        self.smoothing_px = smoothing_px
        self.background_px = background_px
        self.min_area_px = min_area_px
        self.seed_distance_px = seed_distance_px
        self.expand_px = expand_px
        self.min_contrast = min_contrast

    def __call__(self, image: np.ndarray) -> BaselineCells:
        """Found and classified cells of an image (C, H, W), raw counts; see `segment` and `classify` for errors.

        Example:
            >>> image = np.zeros((2, 60, 60), np.uint16)
            >>> image[0, 10:20, 10:20] = image[0, 40:50, 40:50] = 900
            >>> image[1, 40:50, 40:50] = 500
            >>> baseline = OtsuBaseline((Channel(name="Hoechst", role="nuclear"), Channel(name="PI", role="dead")))
            >>> baseline(image).cell_classes.tolist()
            [1, 2]
        """
        return self.classify(image, self.segment(image))

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Label image (H, W) int32 of the cells found in an image (C, H, W), raw counts.

        Raises:
            ConfigError: no channel has the role "nuclear" or "live": the dead stain alone shows dead cells only.
            ShapeError: the image has another number of channels.
            DataError: the image holds NaN or infinity.
        """
        if not {"nuclear", "live"} & self._roles.keys():
            raise ConfigError(_explain_role(self.channels, '"nuclear" or "live"'))
        self._check_image(image)
        if image[0].size == 0:
            return np.zeros(image.shape[1:], np.int32)
        stained = {role: self._find_stained(image, role) for role in self._roles}
        if "nuclear" in stained:
            seeds = stained["nuclear"]
            cells = _grow(seeds, self.expand_px) | stained.get("live", seeds)
        else:
            seeds = cells = _drop_small(stained["live"] | stained["dead"], self.min_area_px)
        label_image = _split_touching(cells, seeds, self.seed_distance_px)
        return _renumber(label_image, self.min_area_px)

    def classify(self, image: np.ndarray, label_image: np.ndarray) -> BaselineCells:
        """Classes of given cells, say the true ones, so that classification can be judged without segmentation.

        Args:
            image: (C, H, W) raw counts.
            label_image: (H, W) integers, 0 = background.

        Raises:
            ShapeError: the image has another number of channels, or another size than the label image.
            DataError: the image holds NaN or infinity.
        """
        self._check_image(image)
        if label_image.shape != image.shape[1:]:
            raise ShapeError(
                explain(
                    got=f"an image of {image.shape[1:]} px and labels of {label_image.shape} px",
                    need="equal height and width",
                    hint="check that image and labels belong to the same field",
                )
            )
        label_image = label_image.astype(np.int32)
        count = int(label_image.max()) if label_image.size else 0
        area = np.bincount(label_image.ravel(), minlength=count + 1)[1:]
        p_live = np.ones(count)
        if count:
            stain = self._remove_ground(image, "dead")
            if (threshold := _find_threshold(stain, self.min_contrast)) is not None:
                p_live = threshold / (threshold + self._measure_dead_stain(stain, label_image, image))
        live, dead = self.classes.index("live"), self.classes.index("dead")
        cell_classes = np.where(area > 0, np.where(p_live >= 0.5, live, dead), IGNORE).astype(np.int64)
        return BaselineCells(label_image=label_image, cell_classes=cell_classes, p_live=p_live)

    def _check_image(self, image: np.ndarray) -> None:
        if image.ndim != 3 or image.shape[0] != len(self.channels):
            names = ", ".join(channel.name for channel in self.channels)
            raise ShapeError(
                explain(
                    got=f"an image of shape {image.shape}",
                    need=f"(channels, height, width) with the channels {names}",
                    hint="give the baseline the channels of this data set",
                )
            )
        if not np.isfinite(image).all():
            raise DataError(explain(got="an image with NaN or infinity", need="finite counts", hint="save it again"))

    def _remove_ground(self, image: np.ndarray, role: str) -> np.ndarray:
        """(H, W) float32 >= 0: the smoothed stain above the ground that surrounds it."""
        stain = ndimage.gaussian_filter(image[self._roles[role]].astype(np.float32), self.smoothing_px)
        # Opening and not a wide blur: a blur lifts the ground between crowded cells and hollows them out.
        return stain - ndimage.grey_opening(stain, size=(self.background_px, self.background_px))

    def _find_stained(self, image: np.ndarray, role: str) -> np.ndarray:
        """(H, W) bool: stained pixels in pieces large enough to be a cell, without holes."""
        stain = self._remove_ground(image, role)
        threshold = _find_threshold(stain, self.min_contrast, power=0.5)
        if threshold is None:
            # A speck of bright dirt on empty ground: on square roots the noise itself is split.
            threshold = _find_threshold(stain, self.min_contrast)
        if threshold is None:
            return np.zeros(stain.shape, bool)
        # The holes of a ring-like stain belong to the cell, and would give it several seeds.
        return _drop_small(ndimage.binary_fill_holes(stain > threshold), self.min_area_px)

    def _measure_dead_stain(self, stain: np.ndarray, label_image: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(N,) mean dead stain per cell: over its nucleus, or over the cell where there is none to see."""
        of_cell = _average_by_label(stain, label_image, label_image.max())
        if "nuclear" not in self._roles:
            return of_cell[0]
        # The dead stain binds DNA; averaged over a whole body, a dead nucleus drowns in the dark cytoplasm.
        nuclei = np.where(self._find_stained(image, "nuclear"), label_image, 0)
        of_nucleus, area = _average_by_label(stain, nuclei, label_image.max())
        return np.where(area >= self.min_area_px, of_nucleus, of_cell[0])


def _find_threshold(stain: np.ndarray, min_contrast: float, *, power: float = 1.0) -> float | None:
    """Otsu's threshold of stain**power, in counts, or None where it only splits the noise."""
    if stain.min() == stain.max():
        return None
    threshold = float(threshold_otsu(stain**power)) ** (1.0 / power)
    dark, bright = stain[stain <= threshold], stain[stain > threshold]
    ground = float(np.median(dark))
    # The noise comes from the darker side alone: in a crowded field most pixels are cell, and a spread over all of
    # them would be contrast, not noise.
    sigma = 1.4826 * float(np.median(np.abs(dark - ground)))
    # Medians, for a mean would let a few specks of dirt vouch for a thousand pixels of noise.
    return threshold if float(np.median(bright)) - ground >= min_contrast * sigma else None


def _split_touching(cells: np.ndarray, seeds: np.ndarray, seed_distance_px: int) -> np.ndarray:
    """Label image of ``cells``: one cell per peak of the distance map of ``seeds``, or per piece without a peak."""
    if not seeds.any():
        seeds = cells
    if not cells.any():
        return np.zeros(cells.shape, np.int32)
    padded = np.pad(seeds, 1)
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    # Outside the nuclei the landscape rises with the distance to them, so cytoplasm goes to the nearest nucleus.
    landscape = ndimage.distance_transform_edt(~padded)[1:-1, 1:-1] - depth
    # Smoothing merges the twin peaks that a ragged outline leaves along the ridge of one cell.
    peaks = peak_local_max(ndimage.gaussian_filter(depth, 1.0), min_distance=seed_distance_px, exclude_border=False)
    markers = np.zeros(cells.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    markers[~cells] = 0
    pieces, count = ndimage.label(cells)
    seedless = np.setdiff1d(np.arange(1, count + 1), pieces[markers > 0])
    number = np.zeros(count + 1, np.int32)
    number[seedless] = len(peaks) + 1 + np.arange(seedless.size)
    return watershed(landscape, np.maximum(markers, number[pieces]), mask=cells).astype(np.int32)


def _average_by_label(stain: np.ndarray, label_image: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mean of the stain per label, 0 where a label has no pixel, and (N,) area in px."""
    area = np.bincount(label_image.ravel(), minlength=count + 1)[1:]
    total = np.bincount(label_image.ravel(), weights=stain.ravel(), minlength=count + 1)[1:]
    return total / np.maximum(area, 1), area


def _grow(mask: np.ndarray, distance_px: int) -> np.ndarray:
    if distance_px == 0 or not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask) <= distance_px


def _drop_small(mask: np.ndarray, min_area_px: int) -> np.ndarray:
    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= min_area_px
    large[0] = False
    return large[pieces]


def _renumber(label_image: np.ndarray, min_area_px: int) -> np.ndarray:
    keep = np.bincount(label_image.ravel()) >= min_area_px
    keep[0] = False
    return (np.cumsum(keep) * keep).astype(np.int32)[label_image]


def _explain_role(channels: tuple[Channel, ...], need: str) -> str:
    have = ", ".join(f"{channel.name} ({channel.role or 'no role'})" for channel in channels)
    return explain(got=f"channels {have}", need=f"one with the role {need}", hint="name the roles in data.channels")
