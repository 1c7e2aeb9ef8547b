"""Whether a bundle's graph says what the net says, measured on real fields of odd sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from cellvision.bundle import Manifest, Splitting, load_manifest
from cellvision.errors import ExportError, explain
from cellvision.export.onnx import INPUT_NAME, open_eager, to_inference
from cellvision.export.parity.case import ParityCase, ParityReport
from cellvision.export.parity.detections import check_forward, compare_detections
from cellvision.export.progress import Tell, say_nothing
from cellvision.models.base import SegNet
from cellvision.runtime.graphs.detection_session import DetectionSession
from cellvision.runtime.maps.splitting import split_cells
from cellvision.runtime.session import open_session

FULL_LIMIT_PX = 512
FULL = (FULL_LIMIT_PX, FULL_LIMIT_PX)
SIZES = (FULL, (127, 93), (64, 64), (33, 257))
BATCHES = (1, 2)

TOLERANCE = 1e-3
"""Largest difference allowed in an output. Sums in another order give 1e-6 to 1e-5, and a wrong operator (a resize that
aligns corners, a lost cast) gives over 1e-2; one thousandth lies between, below the 1/255 that a picture can show."""

ROUNDED_TOLERANCE = 0.02
"""Mean difference of a probability or distance, and share of pixels that are part of a cell on one side only, where a
net rounds. Measured on nuclei: 0.0008 for a U-Net of 32 channels, 0.003 for CenterMask2 with VoVNet-19-slim."""


def compare_with_net(
    net: SegNet,
    bundle: Path,
    images: Sequence[np.ndarray],
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    tolerance: float = TOLERANCE,
    must_agree: bool = True,
    tell: Tell = say_nothing,
) -> ParityReport:
    """Differences between a net and the graph of its bundle: every size, batch of 1 and 2, every allowed image dtype.

    An instance net does the work of its graph in PyTorch here (see `open_eager`). That this is also what the net itself
    does, and was scored with in training, is looked at on the smallest case with cells.

    Args:
        net: what was exported.
        bundle: folder with graph and manifest; splitting and dtypes come from the manifest.
        images: (C, H, W) raw counts, real fields: a net answers noise differently. Cut, or repeated where too small.
        sizes: height and width of the cases; ``FULL`` means the first image's own, at most 512 px an edge.
        tolerance: largest absolute difference that counts as agreement.
        must_agree: False only measures.
        tell: called with a line after each case.

    Raises:
        ExportError: they do not agree, or there is no image; the text holds the worst case.
        BundleError: the bundle is not usable.
    """
    if not images:
        raise ExportError(explain(got="no image", need="at least one real field", hint="give samples of the data set"))
    manifest = load_manifest(bundle)
    session = open_session(bundle)  # what the runtime refuses needs no comparison
    compare: Callable[[np.ndarray, str], ParityCase]
    if isinstance(session, DetectionSession):
        run = open_eager(net, detecting=session.detecting)
        compare = partial(compare_detections, run, session, input_dtype=manifest.input_dtype)
    else:
        compare = partial(_compare, to_inference(net), open_graph(bundle / manifest.graphs[0].file), manifest)
    batches, cases = list(_batches(images, sizes, manifest)), []
    if isinstance(session, DetectionSession) and must_agree:
        check = partial(check_forward, net, run, detecting=session.detecting, tolerance=tolerance)
        any(map(check, sorted((batch for batch, _ in batches), key=np.size)))  # until one shows cells
    for batch, dtype in batches:
        cases.append(compare(batch, dtype))
        tell(f"comparing with PyTorch: {len(cases)} of {len(batches)} cases")
    loose = ("masks", "mask_scores") if manifest.is_parted else ()
    report = ParityReport(tolerance=tolerance, loose=loose, cases=tuple(cases))
    if must_agree and not report.agrees:
        raise ExportError(_disagreement(report))
    return report


def check_rounded(report: ParityReport) -> None:
    """Raise ExportError where a graph on integers and the net that rounds in float differ by more than ties explain.

    A value that lies between two steps but for its last bit may be rounded either way, and what follows goes along; so
    single pixels differ by several steps, and where a net is sure of no class the class may be another. What is looked
    at is the mean over all pixels.
    """
    other = float(np.mean([_find_rounded_difference(case) for case in report.cases]))
    if not other <= ROUNDED_TOLERANCE:  # a NaN does not pass
        got = f"integers give a result that differs from the net's by {other:.3f} on average over the pixels"
        need = f"at most {ROUNDED_TOLERANCE}, or they are not those that it learned with"
        raise ExportError(explain(got=got, need=need, hint="precision=fp32 for the same net without rounding"))


def _find_rounded_difference(case: ParityCase) -> float:
    maps = [value for name, value in case.mean_difference.items() if name in ("probabilities", "distance")]
    return float(np.max([case.pixel_difference, *maps]))  # NaN where any of them is


def open_graph(path: Path, *, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU; ``threads`` defaults to as many as PyTorch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    # Between two runs its threads would spin on the cores that PyTorch needs when its turn comes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def cut(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle (C, height, width) of an image (C, H, W), repeated first where it is smaller.

    Example:
        >>> cut(np.arange(6).reshape(1, 2, 3), 1, 5)[0]
        array([[0, 1, 2, 0, 1]])
    """
    repeats = (1, -(-height // image.shape[1]), -(-width // image.shape[2]))
    image = np.tile(image, repeats)
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def to_dtype(image: np.ndarray, dtype: str) -> np.ndarray:
    """The image with its counts as ``dtype``, clipped to what that can hold."""
    if np.issubdtype(dtype, np.integer):
        image = np.clip(image, 0, np.iinfo(dtype).max)
    return np.ascontiguousarray(image.astype(dtype))


def _batches(
    images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], manifest: Manifest
) -> Iterator[tuple[np.ndarray, str]]:
    cases = product(sizes, manifest.image_dtypes, BATCHES)
    for start, (size, dtype, number) in enumerate(cases):
        height, width = np.minimum(size, images[0].shape[1:]) if size == FULL else size
        chosen = [images[(start + i) % len(images)] for i in range(number)]
        yield np.stack([to_dtype(cut(image, int(height), int(width)), dtype) for image in chosen]), dtype


def _compare(
    net: SegNet, session: onnxruntime.InferenceSession, manifest: Manifest, batch: np.ndarray, dtype: str
) -> ParityCase:
    with torch.inference_mode():
        of_net = {name: result.numpy() for name, result in net.forward(torch.from_numpy(batch)).items()}
    results = session.run(list(manifest.outputs), {INPUT_NAME: batch.astype(manifest.input_dtype)})
    of_graph = dict(zip(manifest.outputs, results, strict=True))
    differences = {name: _difference(of_net[name], of_graph[name], name) for name in manifest.outputs}
    classes = of_net["probabilities"].argmax(1) != of_graph["probabilities"].argmax(1)
    return ParityCase(
        height=batch.shape[2],
        width=batch.shape[3],
        batch=len(batch),
        image_dtype=dtype,
        max_difference={name: float(values.max()) for name, values in differences.items()},
        mean_difference={name: float(values.mean()) for name, values in differences.items()},
        class_difference=float(classes.mean()),
        cells_net=_count_cells(of_net, manifest.splitting),
        cells_graph=_count_cells(of_graph, manifest.splitting),
    )


def _difference(of_net: np.ndarray, of_graph: np.ndarray, name: str) -> np.ndarray:
    if of_net.shape != of_graph.shape:
        raise ExportError(
            explain(
                got=f"output {name!r} has shape {of_graph.shape} from the graph",
                need=f"{of_net.shape} as from the net",
                hint="compute sizes from the image's shape inside the net's forward",
            )
        )
    return np.abs(of_net - of_graph)


def _count_cells(outputs: dict[str, np.ndarray], splitting: Splitting) -> int:
    if not all(np.isfinite(values).all() for values in outputs.values()):
        return 0  # the difference is NaN then, and fails by itself
    number = 0
    for index, probabilities in enumerate(outputs["probabilities"]):
        distance = outputs["distance"][index, 0] if "distance" in outputs else None
        label_image = split_cells(probabilities, distance, splitting=splitting)
        number += np.unique(label_image[label_image > 0]).size
    return number


def _disagreement(report: ParityReport) -> str:
    worst = max(report.cases, key=lambda case: np.nan_to_num(np.max(list(case.max_difference.values())), nan=np.inf))
    differences = ", ".join(f"{value:.2g} in {name}" for name, value in worst.max_difference.items())
    net, graph, shared, other = (
        sum(getattr(case, name) for case in report.cases)
        for name in ("cells_net", "cells_graph", "cell_pixels", "other_pixels")
    )
    pixels = f", with {other} of their {shared} px on one side only" if other else ""
    return explain(
        got=(
            f"graph and net differ by up to {differences} (at {worst.height}x{worst.width} px, batch {worst.batch}, "
            f"{worst.image_dtype}); the graph finds {graph} cells, the net {net}{pixels}"
        ),
        need=f"at most {report.tolerance:g} and the same cells",
        hint="look in the net's forward for what depends on batch, size or training mode",
    )
