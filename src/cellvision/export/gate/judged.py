"""One bundle of a checkpoint in the form that was asked for, if it is as good as the fp32 graph; else that one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellvision.bundle import PRECISIONS, load_manifest, write_manifest
from cellvision.errors import ExportError, check_choice, explain
from cellvision.export.checks import check_count, check_folder, check_switch
from cellvision.export.forms import Measure, Quantizing, write_half, write_int8
from cellvision.export.gate.decision import Verdict, check_tolerance, judge_forms, mark_bundle
from cellvision.export.gate.found import open_bundle
from cellvision.export.gate.measure import measure_forms
from cellvision.export.graph_options import GraphOptions
from cellvision.export.parity.comparison import compare_with_net
from cellvision.export.progress import Tell, say_nothing
from cellvision.export.quantize.calibration import METHODS
from cellvision.export.tensorrt.engines import check_engine_form, write_engines
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.export.writer import export_bundle, load_facts, make_folder
from cellvision.metrics.accuracy import Accuracy, choose_headlines
from cellvision.models.base import SegNet
from cellvision.types import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """The form that is asked for, and how good it must be.

    Attributes:
        precision: one of PRECISIONS; "fp32" for engines.
        engines: build engines of it; None for ONNX.
        images: (C, H, W) raw counts of training fields, from which 8 bit ranges are found.
        calibration: "minmax", "entropy" or "percentile".
        rounds: of the search for layers that stay in float, from 0 up.
        tolerance_points: accuracy that the form may lose against PyTorch, in points.
        allow_worse: keep the form however it did.
        threads: numbers of processor threads to time with; none takes as many as PyTorch uses.
        runs: of each form that count, for times.

    Raises:
        ConfigError: an unknown choice, or a number out of range.
    """

    precision: str
    engines: TensorrtOptions | None = None
    images: Sequence[np.ndarray] = ()
    calibration: str = "minmax"
    rounds: int = 4
    tolerance_points: float = 1.0
    allow_worse: bool = False
    threads: Sequence[int] = ()
    runs: int = 15

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("calibration.method", self.calibration, METHODS)
        check_count("calibration.rounds", self.rounds, least=0)
        check_tolerance(self.tolerance_points)
        check_switch("allow_worse", self.allow_worse)

    @property
    def name(self) -> str:
        """What the form is called in tables."""
        return self.precision if self.engines is None else f"{self.engines.backend} {self.precision}"


def export_judged(
    checkpoint: Path,
    folder: Path,
    request: Request,
    *,
    samples: Sequence[Sample],
    options: GraphOptions,
    tolerance: float,
    overwrite: bool = False,
    tell: Tell = say_nothing,
) -> Verdict:
    """Write the better of the form that is asked for and the fp32 graph to ``folder``, and say which and why.

    Args:
        checkpoint: of train.py.
        folder: where the bundle goes; see `export_bundle`.
        request: see Request.
        samples: held-out fields with true cells, for parity, accuracy and times.
        options: of the graph.
        tolerance: largest difference of the fp32 graph from the net in any output.
        overwrite: replace an existing bundle.
        tell: called with lines on the progress.

    Returns:
        The verdict; `Verdict.raise_if_refused` makes an error of it where the form was refused.

    Raises:
        ConfigError, DataError, BundleError, ExportError: no form at all could be made; nothing is written.
    """
    check_folder(Path(folder).resolve(), overwrite=overwrite)
    if not any(len(sample.cell_classes) for sample in samples):
        got = f"{len(samples)} held-out fields without a cell"
        raise ExportError(explain(got=got, need="true cells to judge a form by", hint="samples=20"))
    net, facts = load_facts(checkpoint)
    with make_folder(Path(folder).resolve(), overwrite=overwrite) as made, tempfile.TemporaryDirectory() as workplace:
        forms = {"fp32": Path(workplace) / "fp32", request.name: Path(workplace) / "form"}
        export_bundle(net, forms["fp32"], samples=samples, **facts, options=options, tolerance=tolerance, tell=tell)
        _write_form(net, forms["fp32"], forms[request.name], request, samples=samples, tell=tell)
        found = measure_forms(
            net,
            forms,
            samples,
            checkpoint=checkpoint,
            threads=request.threads,
            runs=request.runs,
            progress=lambda done, total: tell(f"judging {request.name}: {done} of {total} steps"),
        )
        manifest = load_manifest(forms["fp32"])
        verdict = judge_forms(
            found, manifest, tolerance_points=request.tolerance_points, allow_worse=request.allow_worse
        )
        mark_bundle(forms[verdict.kept], verdict, verdict.kept)
        shutil.copytree(forms[verdict.kept], made, dirs_exist_ok=True)
    return verdict


def _write_form(
    net: SegNet, fp32: Path, folder: Path, request: Request, *, samples: Sequence[Sample], tell: Tell
) -> None:
    """Fill ``folder``, and compare it with the net, which it need not agree with."""
    if request.engines is not None:
        check_engine_form(load_manifest(fp32))
    graphs = folder if request.engines is None else folder.with_name("graphs")
    graphs.mkdir()
    if request.precision == "fp16":
        tell("making the graph in fp16")
        write_half(net, fp32, graphs)
    elif request.precision == "int8":
        quantizing = Quantizing(
            images=request.images,
            method=request.calibration,
            measure=_measure_against(fp32, samples, tell),
            tolerance_points=request.tolerance_points,
            rounds=request.rounds,
            tell=tell,
        )
        write_int8(fp32, graphs, quantizing, form="onnxruntime" if request.engines is None else "tensorrt")
    else:
        shutil.copytree(fp32, graphs, dirs_exist_ok=True)
    images = [sample.image for sample in samples]
    report = compare_with_net(net, graphs, images, must_agree=False, tell=tell)
    write_manifest(replace(load_manifest(graphs), parity=report.to_record()), graphs)
    if request.engines is not None:
        folder.mkdir()
        write_engines(net, graphs, folder, request.engines, tell=tell)


def _measure_against(fp32: Path, samples: Sequence[Sample], tell: Tell) -> Measure:
    """What measures the points that a bundle loses against the one in fp32, in the score that suffers most."""
    manifest = load_manifest(fp32)
    largest_px = max(max(sample.label_image.shape) for sample in samples)

    def score(folder: Path) -> dict[str, float]:
        accuracy = Accuracy(manifest.classes, mask_threshold=manifest.splitting.foreground_threshold)
        predict = open_bundle(folder, largest_px=largest_px)
        for done, sample in enumerate(samples, start=1):
            accuracy.add(sample, predict(sample))
            tell(f"accuracy of {'fp32' if folder == fp32 else 'int8'}: {done} of {len(samples)} fields")
        return accuracy.compute()

    before = score(fp32)

    def measure(folder: Path) -> float:
        after = score(folder)
        names = [headline for headline in choose_headlines(manifest.kind, manifest.classes) if headline.score in before]
        lost = [headline.lose(before[headline.score], after.get(headline.score, np.nan)) for headline in names]
        return max(lost, default=float("nan"))

    return measure
