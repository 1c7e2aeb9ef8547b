"""Cases that the C++ library must agree on, computed by the Python runtime for cpp/tests/core_vectors.cpp."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from skimage.segmentation import watershed

from cellvision.bundle import Splitting, compute_sha256
from cellvision.errors import BundleError, ConfigError
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.masks import paint_detections
from cellvision.runtime.detections.nms import suppress_boxes
from cellvision.runtime.engines.library import Gpu
from cellvision.runtime.engines.sidecar import EngineSidecar, check_engine_sidecar, find_sidecar, write_sidecar
from cellvision.runtime.maps.splitting import split_cells
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.tiles.tiling import Costs, choose_tile_px, plan_spans
from cellvision.runtime.viability import compute_viability
from dot_net import build_whole, draw_dots, write_dot_bundle
from stain_net import build_graph, draw_cells, write_bundle

_COLUMNS = ("class_id", "area_px", "bbox", "centroid_y_px", "centroid_x_px", "mean_intensity", "probabilities")


class CaseFolder:
    """Collects cases in a folder: facts in cases.json, arrays as raw bytes beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cases: list[dict[str, Any]] = []

    def add(self, kind: str, arrays: dict[str, np.ndarray] | None = None, **facts: Any) -> None:
        """One case; ``facts`` are what JSON can hold."""
        number, entries = len(self._cases), {}
        for name, values in (arrays or {}).items():
            file = f"case{number}_{name}.raw"
            (self.folder / file).write_bytes(np.ascontiguousarray(values).tobytes())
            entries[name] = {"file": file, "dtype": values.dtype.name, "shape": list(values.shape)}
        self._cases.append({"kind": kind, "name": f"{number} {kind}", "arrays": entries, **facts})

    def close(self) -> int:
        """Write cases.json; the number of cases."""
        (self.folder / "cases.json").write_text(json.dumps(self._cases), encoding="utf-8")
        return len(self._cases)


def write_vectors(folder: Path) -> int:
    """Write all cases into an existing folder; their number."""
    cases = CaseFolder(folder)
    _add_spans(cases)
    _add_tiles(cases)
    _add_floods(cases)
    _add_splits(cases)
    _add_paintings(cases)
    _add_suppressions(cases)
    _add_small_parts(cases)
    _add_bundles(cases)
    _add_sidecars(cases)
    add_map_predictions(cases)
    add_dot_predictions(cases)
    _add_measured(cases)
    _add_unfit(cases)
    return cases.close()


def _add_spans(cases: CaseFolder) -> None:
    for length in (1, 63, 64, 65, 96, 100, 128, 129, 1000):
        for tile_px, overlap_px in ((32, 8), (64, 32), (16, 16), (512, 96)):
            spans = plan_spans(length, tile_px=tile_px, overlap_px=overlap_px)
            found = [(s.start, s.stop, s.window_start, s.window_stop) for s in spans]
            cases.add("spans", length=length, tile_px=tile_px, overlap_px=overlap_px, spans=found)


def _add_tiles(cases: CaseFolder) -> None:
    """Tile sizes by memory; 0 where even the smallest takes too much."""
    for height, width in ((520, 704), (10_000, 9000), (40, 3000)):
        for most_cells, per_cell in ((0, 0.0), (1000, 1.5e6), (100, 1.5e6)):
            for memory_mib in (20, 90, 400, 1024):
                costs = Costs(per_window_px=700.0, per_band_px=0.0, fixed=1e7, per_cell=per_cell, most_cells=most_cells)
                limits = {"largest_px": 512, "smallest_px": 64, "stride": 32, "overlap_px": 96}
                try:
                    tile_px = choose_tile_px((height, width), costs=costs, memory_mib=memory_mib, **limits)
                except ConfigError:
                    tile_px = 0
                facts = {"per_window_px": 700.0, "fixed": 1e7, "per_cell": per_cell, "most_cells": most_cells, **limits}
                cases.add("tile", height=height, width=width, memory_mib=memory_mib, tile_px=tile_px, **facts)


def _draw_maps(rng: np.random.Generator, shape: tuple[int, int], levels: int) -> tuple[np.ndarray, np.ndarray]:
    """(2, H, W) smooth random maps in 0..1 of so many levels: the fewer, the more pixels are equal."""
    maps = rng.random((2, *shape))
    for axis in (1, 2):
        for _ in range(3):
            maps = (np.roll(maps, 1, axis) + maps + np.roll(maps, -1, axis)) / 3
    low, high = maps.min(), maps.max()
    return (np.round((maps - low) / (high - low) * levels) / levels).astype(np.float32)


def _add_floods(cases: CaseFolder) -> None:
    rng = np.random.default_rng(0)
    for number in range(30):
        shape = tuple(rng.integers(1, 60, 2))
        distance, ground = _draw_maps(rng, shape, levels=(2, 5, 1000)[number % 3])
        mask = ground > rng.uniform(0.1, 0.6)
        seeds = np.where(mask & (rng.random(shape) < 0.05), rng.integers(1, 9, shape), 0).astype(np.int32)
        if not seeds.any():
            continue
        labels = watershed(-distance, seeds, mask=mask).astype(np.int32)
        arrays = {"distance": distance, "mask": mask.astype(np.uint8), "seeds": seeds, "labels": labels}
        cases.add("flood", arrays)


def _add_splits(cases: CaseFolder) -> None:
    rng = np.random.default_rng(1)
    for number in range(24):
        shape = tuple(rng.integers(1, 90, 2))
        distance, background = _draw_maps(rng, shape, levels=(4, 20, 10**6)[number % 3])
        splitting = Splitting(
            method=("distance", "components")[number % 2],
            foreground_threshold=float(rng.choice([0.3, 0.5, 0.7])),
            seed_threshold=float(rng.choice([0.4, 0.6, 0.7])),
            min_area_px=int(rng.integers(1, 30)),
            min_seed_px=int(rng.integers(1, 6)),
        )
        maps = np.stack([background, 1 - background])
        labels = split_cells(maps, distance, splitting=splitting).astype(np.int32)
        arrays = {"background": background, "distance": distance, "labels": labels}
        cases.add("split", arrays, **vars(splitting))


def _add_paintings(cases: CaseFolder) -> None:
    rng = np.random.default_rng(2)
    for number in range(20):
        shape, count, side = tuple(int(n) for n in rng.integers(1, 120, 2)), 40, (28, 14, 1)[number % 3]
        middle, size = rng.uniform(-10, 120, (count, 2)), rng.uniform(-1, 60, (count, 2))
        boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1).astype(np.float32)
        boxes[:3] = [[1e30, 0, 2e30, 9], [-np.inf, 0, 5, 9], [3, 3, 3, 9]]  # what a wild net may say
        if number % 4 == 0:
            boxes = np.round(boxes)
        masks = rng.random((count, side, side)).astype(np.float32)
        masks = np.where(rng.random((count, 1, 1)) < 0.3, np.float32(0.5), masks).astype(np.float32)
        scores = rng.choice(np.linspace(0, 1, 9), count).astype(np.float32)
        found = Detections(
            boxes=boxes,
            scores=scores,
            mask_scores=None,
            class_id=np.ones(count, np.int64),
            class_scores=scores[:, None],
            masks=masks,
        )
        facts = {"mask_threshold": 0.5, "min_area_px": int(rng.integers(1, 9)), "min_visible": 0.5}
        labels, kept = paint_detections(found, shape=shape, score_threshold=0.2, **facts)
        order = np.argsort(-scores, kind="stable")
        arrays = {"boxes": boxes, "masks": masks, "order": order[scores[order] >= 0.2], "kept": kept, "labels": labels}
        cases.add("paint", arrays, **facts)


def _add_suppressions(cases: CaseFolder) -> None:
    rng = np.random.default_rng(3)
    for number in range(12):
        count = (0, 1, 300, 700)[number % 4]
        corner, size = rng.uniform(0, 80, (count, 2)), rng.uniform(0, 30, (count, 2))
        boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
        if number % 2:
            boxes = np.round(boxes / 4) * 4  # many overlaps of exactly a half, and boxes without an inside
        scores = rng.choice(np.linspace(-1, 1, 21), count).astype(np.float32)
        classes = rng.integers(1, 4, count)
        iou, most, least = (0.5, 0.6, 0.25)[number % 3], (1000, 50)[number % 2], (0.0, 0.5)[number // 6]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= least]
        kept = order[suppress_boxes(boxes[order], classes[order], iou=iou, limit=most)].astype(np.int64)
        arrays = {"boxes": boxes, "scores": scores, "classes": classes, "kept": kept}
        cases.add("suppress", arrays, least=least, iou=iou, most=most)


def _add_small_parts(cases: CaseFolder) -> None:
    for live, dead, confidence in ((0, 0, 0.95), (18, 2, 0.95), (5, 0, 0.99), (0, 7, 0.5), (10**6, 3, 0.999999)):
        cases.add("viability", **vars(compute_viability(live, dead, confidence=confidence)))
    rng = np.random.default_rng(4)
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 5000):
        data = rng.integers(0, 256, size, dtype=np.uint8)
        cases.add("sha256", {"bytes": data}, digest=hashlib.sha256(data.tobytes()).hexdigest())
    model = build_graph()
    alone = np.frombuffer(model.SerializeToString(), np.uint8)
    cases.add("external", {"model": alone}, external=False)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    cases.add("external", {"model": np.frombuffer(model.SerializeToString(), np.uint8)}, external=True)


def _add_bundles(cases: CaseFolder) -> None:
    """Bundles with one thing wrong each, and a word of the text that must say so."""
    for number, (change, name) in enumerate(
        (
            ({"format": "other"}, "format"),
            ({"format_version": 3}, "format version 3"),
            ({"stride": 0}, "stride=0"),
            ({"stride": 7}, "tile_px=64"),
            ({"kind": "cells"}, 'kind="cells"'),
            ({"classes": ["background", "live"]}, "live and dead"),
            ({"classes": "background"}, "classes="),
            ({"classes": ["background", "live", "dead", "cells"]}, "other names than the columns image, cells"),
            ({"pixel_size_um": 9e-5}, "need a number of micrometres from 0.0001 to 1000000, or null"),
            ({"pixel_size_um": 1.1e6}, "need a number of micrometres from 0.0001 to 1000000, or null"),
            ({"tile_px": 500_000_032}, "tile_px=500000032; need a whole number from 1 to 500000000"),
            ({"splitting": {"min_area_px": 10**18}}, "need a whole number from 1 to 500000000"),
            ({"live_threshold": 1.5}, "live_threshold=1.5"),
            ({"surprise": 1}, "surprise"),
            ({"outputs": ["probabilities"]}, "distance"),
            ({"model": None}, "model=null"),
            ({"splitting": {"min_area_px": True}}, "splitting.min_area_px=true"),
            ({"graphs": [{"role": "whole", "file": "../model.onnx", "sha256": "0" * 64}]}, "plain file name"),
            ({"graphs": [{"role": "whole", "file": "model.onnx", "sha256": "0" * 64}]}, "SHA-256 000000000000.."),
            ({"graphs": [{"role": "whole", "file": "none.onnx", "sha256": "0" * 64}]}, "no file beside it"),
            ({"graphs": [{"role": "trunk", "file": "model.onnx", "sha256": "0" * 64}]}, "whole"),
        )
    ):
        path = write_bundle(cases.folder / f"refused{number}") / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change), encoding="utf-8")
        cases.add("refused", bundle=path.parent.name, names=name)
    missing = write_bundle(cases.folder / "refused_missing") / "manifest.json"
    record = json.loads(missing.read_text())
    del record["classes"]
    missing.write_text(json.dumps(record), encoding="utf-8")
    cases.add("refused", bundle="refused_missing", names="lacks classes")
    (cases.folder / "refused_none").mkdir()
    cases.add("refused", bundle="refused_none", names="no manifest.json")


def add_prediction(cases: CaseFolder, bundle: str, image: np.ndarray, **facts: Any) -> None:
    """One case from the Python Predictor on a bundle inside the folder.

    ``facts`` are tile_px and overlap_px, and channel_names, pixel_size_um and intensity_scale, where given; all others
    are for C++ alone.
    """
    sizes = {name: facts[name] for name in ("tile_px", "overlap_px") if name in facts}
    wishes = {name: facts[name] for name in ("pixel_size_um", "intensity_scale") if name in facts}
    if "channel_names" in facts:
        wishes["channel_names"] = tuple(facts["channel_names"])
    cells = Predictor(cases.folder / bundle, threads=1, **sizes)(image, **wishes)
    arrays = {name: getattr(cells, name) for name in _COLUMNS} | {"image": image, "labels": cells.label_image}
    if cells.score is not None:
        arrays["score"] = cells.score
    cases.add("predict", arrays, bundle=bundle, tiles=cells.tiles, **facts)


def add_map_predictions(cases: CaseFolder) -> None:
    """The stain net, whose cells are known, on images of several sizes and dtypes, in one tile and in many."""
    rng = np.random.default_rng(5)
    write_bundle(cases.folder / "stain")
    write_bundle(cases.folder / "stain_regions", splitting=Splitting(method="components"))
    facts = {"input_dtype": "float32", "image_dtypes": ("uint8", "uint16", "float32")}
    write_bundle(cases.folder / "stain_float", build_graph(input_dtype="float32"), **facts)
    cells = [tuple(rng.integers(0, n, 90)) for n in (190, 230)]
    image = draw_cells((190, 230), list(zip(*cells, strict=True)), rng.uniform(4, 12, 90), dead=range(0, 90, 3))
    for bundle in ("stain", "stain_regions", "stain_float"):
        add_prediction(cases, bundle, image, pixel_size_um=0.5)
        add_prediction(cases, bundle, image, tile_px=64, overlap_px=32)
        add_prediction(cases, bundle, image, tile_px=16, overlap_px=16)
    add_prediction(cases, "stain", image[:, :33, :41], tile_px=8, overlap_px=8)
    add_prediction(cases, "stain", np.zeros((2, 1, 1), np.uint16))
    add_prediction(cases, "stain", image[::-1].copy(), channel_names=["PI", "nuclei"])
    add_prediction(cases, "stain", (image // 257).astype(np.uint8), intensity_scale=257.0)
    add_prediction(cases, "stain_float", image.astype(np.float32) + np.float32(0.25))


def add_dot_predictions(cases: CaseFolder) -> None:
    """The dot net, whole and parted, with and without a rating of its masks, in one tile and in many."""
    rng = np.random.default_rng(6)
    plain = ("boxes", "scores", "classes", "valid", "class_scores", "masks")
    bundles = {"dots": {}, "dots_parted": {"parted": True}}
    bundles |= {f"{name}_plain": facts | {"outputs": plain} for name, facts in bundles.items()}
    places = rng.permutation(150 * 170)[:60]
    centres = np.stack(np.divmod(places, 170), axis=1)
    image = draw_dots((150, 170), centres, rng.uniform(2, 12, 60), dead=range(0, 60, 4))
    write_dot_bundle(cases.folder / "dots_clipped", build_whole(clip=True))  # boxes end at a window's sides
    for bundle, facts in bundles.items():
        write_dot_bundle(cases.folder / bundle, **facts)
    for bundle in (*bundles, "dots_clipped"):
        add_prediction(cases, bundle, image, tile_px=256, overlap_px=32)
        add_prediction(cases, bundle, image, tile_px=64, overlap_px=32)
        add_prediction(cases, bundle, image, tile_px=32, overlap_px=16)
        add_prediction(cases, bundle, np.zeros((3, 40, 50), np.uint16))


def _add_measured(cases: CaseFolder) -> None:
    """What must not change the cells: so little memory that the net's need is measured, arenas, several threads."""
    rng = np.random.default_rng(7)
    image = draw_dots((90, 100), rng.permutation(9000)[:20, None] // [100, 1] % [90, 100], 5)
    for bundle in ("dots", "dots_parted"):
        add_prediction(cases, bundle, image, tile_px=64, overlap_px=32, memory_mib=200)
        add_prediction(cases, bundle, image, tile_px=64, overlap_px=32, arena="shrink", at_once=3)
    image = draw_cells((90, 100), [(30, 30), (60, 70)], 9)
    add_prediction(cases, "stain_float", image, tile_px=64, overlap_px=32, memory_mib=20)
    add_prediction(cases, "stain_float", image, tile_px=64, overlap_px=32, arena="none", at_once=3)


def _add_sidecars(cases: CaseFolder) -> None:
    """Sidecars of engines, where they are to run, and what Python says to it; "" where the engine may run."""
    built = Gpu(name="NVIDIA H100", compute_capability="9.0")
    facts = {
        "library": "tensorrt", "library_version": "11.4.0.106", "gpu": built, "onnx_sha256": "0" * 64,
        "precision": "fp16", "layers": {"fp16": 3}, "profile": {}, "inputs": (), "outputs": (),
    }  # fmt: skip
    for number, (there, here) in enumerate(
        (
            ({}, {}),
            ({}, {"library_version": "11.3.0.1"}),
            ({}, {"gpu": Gpu(name="NVIDIA A100", compute_capability="8.0")}),
            ({"gpu": None}, {}),
            ({"engine_sha256": "1" * 64}, {}),
        )
    ):
        engine = cases.folder / f"engine{number}"
        engine.write_bytes(b"engine")
        write_sidecar(EngineSidecar(**facts | {"engine_sha256": compute_sha256(engine)} | there), engine)
        host = {"library_version": "11.4.0.106", "gpu": built} | here
        try:
            check_engine_sidecar(engine, **host)
            said = ""
        except BundleError as error:
            said = str(error)
        cases.add("sidecar", engine=engine.name, said=said, **host | {"gpu": asdict(host["gpu"])})
    for name, text in (("none", None), ("odd", "{"), ("other", '{"format": "x"}')):
        engine = cases.folder / name
        engine.write_bytes(b"engine")
        if text is not None:
            find_sidecar(engine).write_text(text)
        said = f"{find_sidecar(engine)} is not "
        cases.add("sidecar", engine=name, said=said, library_version="", gpu=asdict(built))


def _add_unfit(cases: CaseFolder) -> None:
    """Images that do not suit a bundle, and a word of the text that must say so."""
    image = draw_cells((90, 100), [(30, 30), (60, 70)], 9)
    broken = image.astype(np.float32)
    broken[1, 40, 50] = np.nan
    for array, bundle, name, facts in (
        (np.zeros((2, 300, 300), np.uint16), "stain", "memory_mib=1", {"memory_mib": 1, "tile_px": 256}),
        (image, "stain", "threads=-1", {"threads": -1}),
        (image, "stain", "tile_px=0", {"tile_px": 0}),
        (image, "stain", "overlap_px=2147483647", {"overlap_px": 2**31 - 1}),
        (image, "stain", "arena=all", {"arena": "all"}),
        (image, "stain", "nosuch", {"provider": "nosuch"}),
        (image, "stain", "intensity_scale=-1", {"intensity_scale": -1.0}),
        (image, "stain", "intensity_scale=1e+38", {"intensity_scale": 1e38}),
        (image, "stain", "intensity_scale=1e-300; need a factor", {"intensity_scale": 1e-300}),
        (
            image,
            "stain",
            "at intensity_scale=100; need 0 to 65535",
            {"intensity_scale": 100.0},
        ),
        (image, "stain", "pixel_size_um=0; need a number of micrometres", {"pixel_size_um": 0.0}),
        (image, "stain", "pixel_size_um=6.5e-07; need a number of micrometres", {"pixel_size_um": 6.5e-7}),
        (image, "stain", "pixel_size_um=1e+300; need a number of micrometres", {"pixel_size_um": 1e300}),
        (image, "stain", "nuclei once", {"channel_names": ["a", "PI"]}),
        (image, "stain", "1 channel names", {"channel_names": ["a"]}),
        (image[:1], "stain", "1 channels", {}),
        (image.astype(np.uint8), "stain", "uint8", {}),
        (broken, "stain_float", "NaN", {}),
        (image[:, :0], "stain", "0x100 px", {}),
    ):
        cases.add("unfit", {"image": array}, bundle=bundle, names=name, **facts)
