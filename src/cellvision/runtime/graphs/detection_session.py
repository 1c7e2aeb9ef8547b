"""Bundles whose net finds the cells itself: in one graph, or in two with the choice of boxes between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cellvision.bundle import Detecting, Manifest
from cellvision.errors import BundleError, explain
from cellvision.runtime.detections.found import Detections, read_detections
from cellvision.runtime.detections.nms import suppress_boxes
from cellvision.runtime.graphs.base_session import BaseSession

REGIONS = 64
"""Masks are made for so many boxes at a time: what they take grows with their number."""

_CANDIDATES = ("boxes", "scores", "classes", "class_scores")


class DetectionSession(BaseSession[Detections]):
    """An open bundle of kind instance. What it finds is best first; boxes may reach beyond the window."""

    @property
    def detecting(self) -> Detecting:
        """How candidates become detections."""
        assert self.manifest.detecting is not None
        return self.manifest.detecting

    def _check_found(self, role: str, found: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            self._check_result(role, name, found[name], shape)
        classes = found["classes"] if "valid" not in found else found["classes"][found["valid"]]
        if classes.size and not 1 <= classes.min() <= classes.max() < len(self.manifest.classes):
            raise BundleError(
                explain(
                    got=f"{self._name(role)}: output 'classes' holds {classes.min()} to {classes.max()}",
                    need=f"1 to {len(self.manifest.classes) - 1}",
                    hint="export the bundle again",
                )
            )


class WholeSession(DetectionSession):
    """An open bundle of kind instance that is one graph."""

    def run_batch(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Detections]:
        """What the net finds in each of B windows of one size, in one run of the graph; see `run`."""
        batch = np.asarray(images)
        found = self._run("whole", {"image": batch}, self.manifest.outputs)
        places, side = (len(batch), self.detecting.max_cells), self.detecting.mask_side
        tails = {"boxes": (4,), "class_scores": (len(self.manifest.classes) - 1,), "masks": (side, side)}
        self._check_found("whole", found, {name: (*places, *tails.get(name, ())) for name in self.manifest.outputs})
        return [read_detections(found, at) for at in range(len(batch))]

    def probe_cells(self, edge_px: int) -> int:
        """Run the graph on drawn cells, bright ones or else dark ones; the number that it found, maybe none."""
        for colours in ((20, 200), (200, 20)):
            if cells := len(self.run(_draw_discs(edge_px, colours, self.manifest))):
                return cells
        return 0


def _draw_discs(edge_px: int, colours: tuple[int, int], manifest: Manifest) -> np.ndarray:
    """(C, edge, edge) discs of 18 px with soft edges, 24 px apart; ``colours`` of ground and cells, of 255."""
    y, x = np.indices((edge_px, edge_px)) % 24 - 12
    cover = np.clip(1.5 - np.hypot(y, x) / 9, 0, 1)
    plane = colours[0] + (colours[1] - colours[0]) * cover
    scale = 257 if manifest.input_dtype == "uint16" else 1
    return np.repeat(plane[None] * scale, len(manifest.channels), axis=0).astype(manifest.input_dtype)


class PartedSession(DetectionSession):
    """An open bundle of kind instance in two graphs, from which "trunk" gives candidates and "masks" their masks."""

    def __init__(self, *, maps: tuple[str, ...], **parts: Any) -> None:
        """Hold what `open_session` has opened; ``maps`` names what goes from one graph to the other."""
        super().__init__(**parts)
        self._maps = maps

    def probe(self, edge_px: int) -> None:
        """Run both graphs on a black image of this edge, the second for as many boxes as it ever gets at once."""
        shape = (1, len(self.manifest.channels), edge_px, edge_px)
        found = self._run_trunk(np.zeros(shape, self.manifest.input_dtype))
        whole = np.array([[0, 0, edge_px, edge_px]], np.float32)
        ones = np.ones(REGIONS, np.int64)
        self._make_masks(found, boxes=np.repeat(whole, REGIONS, axis=0), images=0 * ones, classes=ones, area=edge_px**2)

    def run_batch(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Detections]:
        """What the net finds in each of B windows of one size; see `run`."""
        batch = np.asarray(images)
        found = self._run_trunk(batch)
        chosen = [self._choose(found, at) for at in range(len(batch))]
        at = np.repeat(np.arange(len(batch)), [len(places) for places in chosen])
        rows = {name: found[name][at, np.concatenate(chosen)] for name in _CANDIDATES}
        area = batch.shape[2] * batch.shape[3]
        masks, ious = self._make_masks(found, boxes=rows["boxes"], images=at, classes=rows["classes"], area=area)
        detections = Detections(
            boxes=rows["boxes"],
            scores=rows["scores"],
            mask_scores=None if ious is None else rows["scores"] * ious,
            class_id=rows["classes"],
            class_scores=rows["class_scores"],
            masks=masks,
        )
        return [detections.take(at == image) for image in range(len(batch))]

    def iterate_mask_feeds(self, batch: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """What the mask graph gets for a batch (B, C, H, W) of windows, as arrays; for calibration."""
        found = self._run_trunk(batch)
        for at in range(len(batch)):
            places = self._choose(found, at)
            rows = {name: found[name][at][places] for name in ("boxes", "classes")}
            area = batch.shape[2] * batch.shape[3]
            portions = self._portion(found, **rows, images=np.full(len(places), at), area=area)
            for _, feeds in portions:
                yield {
                    name: np.asarray(value if isinstance(value, np.ndarray) else value.numpy())
                    for name, value in feeds.items()
                }

    def _run_trunk(self, batch: np.ndarray) -> dict[str, Any]:
        """Candidates as arrays, and pyramid maps that stay where the graph made them if the next one can take them."""
        held = self._maps if self.manifest.find_graph("masks").engine == "onnx" else ()
        found = self._run("trunk", {"image": batch}, (*_CANDIDATES, *self._maps), held)
        candidates = {name: found[name] for name in _CANDIDATES}
        places = (len(batch), found["scores"].shape[-1])
        tails = {"boxes": (4,), "class_scores": (len(self.manifest.classes) - 1,)}
        self._check_found("trunk", candidates, {name: (*places, *tails.get(name, ())) for name in candidates})
        return found

    def _choose(self, found: Mapping[str, np.ndarray], at: int) -> np.ndarray:
        """Places of the candidates of image ``at`` that become detections, best first."""
        scores = found["scores"][at]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= max(self.detecting.min_score, 0.0)]
        stay = suppress_boxes(
            found["boxes"][at][order],
            found["classes"][at][order],
            iou=self.detecting.nms_iou,
            limit=self.detecting.max_cells,
        )
        return order[stay]

    def _make_masks(
        self, found: Mapping[str, Any], *, boxes: np.ndarray, images: np.ndarray, classes: np.ndarray, area: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(R, M, M) masks and, where the net rates them, (R,) predicted IoUs."""
        side = self.detecting.mask_side
        rated = "mask_scores" in self.manifest.outputs
        masks = np.zeros((len(boxes), side, side), np.float32)
        ious = np.zeros(len(boxes), np.float32)
        for start, feeds in self._portion(found, boxes=boxes, images=images, classes=classes, area=area):
            some = slice(start, start + REGIONS)
            result = self._run("masks", feeds, ("masks", "mask_ious") if rated else ("masks",))
            self._check_result("masks", "masks", result["masks"], masks[some].shape)
            masks[some] = result["masks"]
            if rated:
                self._check_result("masks", "mask_ious", result["mask_ious"], ious[some].shape)
                ious[some] = result["mask_ious"]
        return masks, ious if rated else None

    def _portion(
        self, found: Mapping[str, Any], *, boxes: np.ndarray, images: np.ndarray, classes: np.ndarray, area: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(first region, inputs of the mask graph) for every REGIONS of the boxes."""
        for start in range(0, len(boxes), REGIONS):
            some = slice(start, start + REGIONS)
            yield (
                start,
                {name: found[name] for name in self._maps}
                | {
                    "boxes": boxes[some],
                    "images": images[some].astype(np.int64),
                    "classes": classes[some],
                    "image_area": np.array([area], np.float32),
                },
            )
