"""Bundles: a net's graph with its manifest, written only when the graph agrees with the net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cellvision.bundle import (
    DETECTION_OUTPUTS,
    Channel,
    Graph,
    Manifest,
    Splitting,
    compute_sha256,
    load_manifest,
    write_manifest,
)
from cellvision.errors import ConfigError, explain, is_finite_number
from cellvision.export.checks import GRAPH_NAME, check_fit, check_folder, select_dtypes
from cellvision.export.folder import make_folder
from cellvision.export.gate.latency import measure_latency
from cellvision.export.graph_options import GraphOptions
from cellvision.export.onnx import export_part, split_net
from cellvision.export.parity.comparison import TOLERANCE, check_rounded, compare_with_net, cut, to_dtype
from cellvision.export.progress import Tell, say_nothing
from cellvision.export.quantize.finishing import export_integers
from cellvision.export.quantize.trained import to_float
from cellvision.export.reach import compute_reach
from cellvision.export.tensorrt.engines import check_engines
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.git_state import describe_git
from cellvision.models.base import SegNet
from cellvision.models.structure.fake_quant import is_rounding
from cellvision.runtime.session import open_session
from cellvision.training.checkpoint import load_net, load_plain_checkpoint
from cellvision.training.net_record import RECORD_KEY
from cellvision.training.record import collect_versions
from cellvision.types import Sample

LATENCY_PX = 256
TILE_PX = 512
WITHOUT_ROUNDING = {"precision": "fp32", "rounding": "learned, and left out"}
SMALLEST_OVERLAP_PX = 96  # tiles compare whole cells at their seams: the width of a large one


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    *,
    samples: Sequence[Sample],
    precision: str | None = None,
    options: GraphOptions | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    tell: Tell = say_nothing,
) -> Manifest:
    """The manifest of a new bundle in ``folder``, made of a checkpoint and its own record; see ``export_bundle``.

    Light, as at the end of a run: compared with PyTorch, and timed on a small image. `export_judged` also measures
    accuracy, latency and memory against PyTorch, and gives a verdict.

    ``precision`` "fp32" leaves out the rounding that a net has learned; None exports the net as it is.

    Raises:
        DataError: the checkpoint cannot be used.
        ConfigError, BundleError, ExportError: as for ``export_bundle``.
    """
    net, facts = load_facts(checkpoint)
    if precision == "fp32" and is_rounding(net):
        net = to_float(net)
        facts["provenance"]["form"] = WITHOUT_ROUNDING
    how: dict[str, Any] = {"options": options, "tolerance": tolerance, "overwrite": overwrite, "tell": tell}
    return export_bundle(net, folder, samples=samples, **facts, **how)


def load_facts(checkpoint: Path) -> tuple[SegNet, dict[str, Any]]:
    """A checkpoint's net, and what its record says of it, as arguments of ``export_bundle``.

    Raises:
        DataError: the checkpoint cannot be used.
    """
    net, record = load_net(checkpoint)
    return net, {
        "channels": record.channels,
        "image_dtypes": record.image_dtypes,
        "pixel_size_um": record.pixel_size_um,
        "splitting": record.splitting,
        "accuracy": record.accuracy,
        "provenance": {
            "checkpoint_sha256": compute_sha256(checkpoint),
            "data_fingerprint": record.fingerprint,
            "net": record.net,
            "git": describe_git(),
        },
        "live_threshold": record.live_threshold,
        "nucleus_margin_px": record.nucleus_margin_px,
        "long_cell_px": record.long_cell_px,
        "recipe": record.recipe,
    }


def choose_precision(checkpoint: Path) -> str:
    """The precision in which a checkpoint's net is meant to run: "int8" where it rounds, else "fp32".

    Raises:
        DataError: the checkpoint cannot be used.
    """
    record = load_plain_checkpoint(checkpoint).get(RECORD_KEY, {})
    return "int8" if any(step["step"] == "quantize" for step in record.get("recipe", ())) else "fp32"


def export_bundle(
    net: SegNet,
    folder: Path,
    *,
    samples: Sequence[Sample],
    channels: Sequence[Channel],
    image_dtypes: Sequence[str],
    pixel_size_um: float | None,
    splitting: Splitting,
    accuracy: dict[str, Any],
    provenance: dict[str, Any],
    live_threshold: float = 0.5,
    nucleus_margin_px: int = 0,
    long_cell_px: int = 0,
    recipe: Sequence[dict[str, Any]] = (),
    options: GraphOptions | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    tell: Tell = say_nothing,
) -> Manifest:
    """The manifest of a new bundle in ``folder``, after the graph was compared with the net on ``samples``.

    Of a net that rounds it has the integers of its training, for ONNX Runtime; see ``check_rounded`` for how far these
    may differ from the net.

    The bundle is made beside ``folder`` and renamed at the end: there is a whole bundle or none.

    Args:
        net: any net; it is left as it is.
        folder: where the bundle goes; it must not exist, be empty, or hold a bundle that may be replaced.
        samples: real fields with the net's channels, for the comparison and the times.
        channels: one per input channel of the net, in order.
        image_dtypes: dtypes of images whose counts mean what the training counts meant; those that its input
            cannot hold without loss are left out of the manifest.
        pixel_size_um: of the training images, or None where unknown.
        splitting: how the runtime separates cells.
        accuracy: measured scores, for the manifest.
        provenance: where the net comes from, for the manifest.
        recipe: compression records, for the manifest.
        live_threshold: in (0, 1).
        nucleus_margin_px: px from a nucleus to the annotated outline, for the manifest, >= 0.
        long_cell_px: length of the longest usual cell; tiles overlap by it, so that none is cut. 0 where unknown.
        options: of the graph; None for the usual ones.
        tolerance: largest difference from the net in any output, 0..1.
        overwrite: replace an existing bundle.
        tell: called with lines on the progress.

    Raises:
        ConfigError: arguments that do not fit the net, or a folder that may not be replaced.
        BundleError: a fact that no manifest can hold, say two channels of one name; see `Manifest`.
        ExportError: no graph, or one that disagrees with the net; nothing is left behind.
    """
    folder, options = Path(folder).resolve(), options or GraphOptions()
    check_folder(folder, overwrite=overwrite)
    check_fit(net, samples, channels=channels, splitting=splitting, live_threshold=live_threshold)
    draft = _draft(
        to_float(net),  # a change too small for a step would seem to reach nowhere
        options,
        splitting=splitting,
        provenance=provenance,
        long_cell_px=long_cell_px,
        image_dtypes=select_dtypes(image_dtypes, options.input_dtype),
        channels=tuple(channels),
        pixel_size_um=pixel_size_um,
        live_threshold=live_threshold,
        nucleus_margin_px=nucleus_margin_px,
        recipe=tuple(recipe),
        accuracy=accuracy,
    )
    with make_folder(folder, overwrite=overwrite) as made:
        _make(net, draft, made, options=options, samples=samples, tolerance=tolerance, tell=tell)
    return load_manifest(folder)


def check_options(checkpoint: Path, options: GraphOptions, engines: TensorrtOptions | None = None) -> None:
    """Raise unless the graphs, and the engines of them, can be made of a checkpoint's net.

    Raises:
        DataError: the checkpoint cannot be used.
        ConfigError, ExportError: options that do not suit the net.
        ConfigError, ExportError, MissingExtraError: as for `check_engines`.
    """
    net, record = load_net(checkpoint)
    if engines is not None:
        check_engines(net, options, engines)
    detecting = options.choose_detecting(net, record.splitting)
    split_net(to_float(net), input_dtype=options.input_dtype, detecting=detecting, parted=options.parted)


def check_tolerance(tolerance: float) -> None:
    """Raise ConfigError unless the tolerance is a number from 0 up."""
    if not is_finite_number(tolerance) or tolerance < 0:
        got = f"tolerance={tolerance}"
        raise ConfigError(explain(got=got, need="a difference from 0 up", hint=f"tolerance={TOLERANCE:g}"))


def _draft(
    net: SegNet,
    options: GraphOptions,
    *,
    splitting: Splitting,
    provenance: dict[str, Any],
    long_cell_px: int,
    **facts: Any,
) -> Manifest:
    """The manifest as far as it is known before there is a graph."""
    spec, detecting = net.spec, options.choose_detecting(net, splitting)
    tiles = _plan_tiles(net, long_cell_px if detecting else 0)
    known = (*DETECTION_OUTPUTS, "mask_scores")
    return Manifest(
        model=spec.name,
        kind=spec.kind,
        classes=spec.classes,
        outputs=spec.outputs if detecting is None else tuple(name for name in known if name in spec.outputs),
        stride=spec.stride,
        splitting=splitting,
        detecting=detecting,
        input_dtype=options.input_dtype,
        graphs=(Graph(role="whole", file=GRAPH_NAME, sha256="0" * 64),),
        versions=collect_versions(),
        provenance={**provenance, "tiling": tiles.pop("tiling")},
        **tiles,
        **facts,
    )


def _make(
    net: SegNet,
    draft: Manifest,
    made: Path,
    *,
    options: GraphOptions,
    samples: Sequence[Sample],
    tolerance: float,
    tell: Tell,
) -> None:
    """Fill the folder ``made`` with a bundle whose graphs agree with the net."""
    check_tolerance(tolerance)
    rounds = is_rounding(net)
    how: dict[str, Any] = {"input_dtype": draft.input_dtype, "detecting": draft.detecting, "parted": options.parted}
    files = {role: made / f"{role}.onnx" for role in ("trunk", "masks")} if options.parted else {}
    files = files or {"whole": made / GRAPH_NAME}
    provenance = dict(draft.provenance)
    if rounds:
        tell("making the graph in 8 bits")
        provenance["form"] = export_integers(net, files, **how)
    else:
        for part in split_net(net, **how):
            tell(f"making the graph: {part.role}")
            export_part(part, files[part.role])
    precision = "int8" if rounds else "fp32"
    graphs = tuple(
        Graph(role=role, file=path.name, sha256=compute_sha256(path), precision=precision)
        for role, path in files.items()
    )
    manifest = replace(draft, graphs=graphs, provenance=provenance)
    write_manifest(manifest, made)
    images = [sample.image for sample in samples]
    report = compare_with_net(net, made, images, tolerance=tolerance, must_agree=not rounds, tell=tell)
    if rounds:
        check_rounded(report)
    tell("timing the graph and PyTorch")
    image = to_dtype(cut(images[0], LATENCY_PX, LATENCY_PX), manifest.input_dtype)
    run = open_session(made, threads=torch.get_num_threads()).run_batch
    latency = measure_latency(to_float(net), run, image, detecting=manifest.detecting)
    write_manifest(replace(manifest, parity=report.to_record(), latency=latency), made)


def _plan_tiles(net: SegNet, long_cell_px: int) -> dict[str, Any]:
    """Tile and overlap: the overlap is the net's own reach, so that tiled and untiled results are the same."""
    stride = net.spec.stride
    tile_px = -(-TILE_PX // stride) * stride
    reach_px = compute_reach(net, largest_px=tile_px) if net.spec.tiles else None
    overlap_px = max(tile_px // 4 if reach_px is None else reach_px, SMALLEST_OVERLAP_PX, long_cell_px)
    return {
        "tile_px": tile_px,
        "overlap_px": -(-overlap_px // stride) * stride,
        # Beyond the overlap, or where a layer sees the whole image, results at tile seams are only approximate.
        "tiling": {"exact": reach_px is not None, "reach_px": reach_px, "long_cell_px": long_cell_px},
    }
