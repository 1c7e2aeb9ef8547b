"""One bundle of a checkpoint, measured against PyTorch: the form that was asked for, or fp32 where that is better."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellvision.bundle import PRECISIONS, load_manifest, write_manifest
from cellvision.checks import check_count, check_switch
from cellvision.errors import ExportError, check_choice, explain
from cellvision.export.checks import check_folder
from cellvision.export.folder import make_folder
from cellvision.export.forms import Quantizing, write_half, write_int8, write_trained
from cellvision.export.gate.decision import Verdict, check_tolerance, judge_forms, mark_bundle
from cellvision.export.gate.loss import open_loss
from cellvision.export.gate.measure import measure_forms
from cellvision.export.graph_options import GraphOptions
from cellvision.export.parity.comparison import compare_with_net
from cellvision.export.progress import Tell, say_nothing
from cellvision.export.quantize.calibration import METHODS
from cellvision.export.quantize.trained import to_float
from cellvision.export.tensorrt.engines import write_engines
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.export.writer import WITHOUT_ROUNDING, export_bundle, load_facts
from cellvision.models.base import SegNet
from cellvision.models.structure.fake_quant import is_rounding
from cellvision.types import Sample

PARTED = "two graphs"


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """The form that is asked for, and how good it must be.

    Attributes:
        precision: one of PRECISIONS. Of a net that rounds, "int8" has the integers of its training and needs no
            fields; in other precisions it does not round.
        engines: build engines of it; None for ONNX.
        fields: of the training split, with true cells: from their images 8 bit ranges are found, and layers that have
            to stay in float by how right they come out. Held-out ones would make the judgement flatter the form.
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
    fields: Sequence[Sample] = ()
    calibration: str = "minmax"
    rounds: int = 4
    tolerance_points: float = 1.0
    allow_worse: bool = False
    threads: Sequence[int] = ()
    runs: int = 15

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("calibration.method", self.calibration, METHODS)
        check_count("calibration.rounds", self.rounds, low=0, example=4)
        check_tolerance(self.tolerance_points)
        check_switch("allow_worse", self.allow_worse)

    @property
    def is_fp32(self) -> bool:
        """Whether the fp32 graphs are all that is asked for."""
        return self.precision == "fp32" and self.engines is None

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

    The fp32 graph itself is measured against PyTorch too, where nothing else is asked for. Two graphs in fp32 are
    measured beside one. They are for engines and for less memory, so that they may be slower than one, which is said.

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
    plain = to_float(net)
    if is_rounding(net):
        facts["provenance"]["form"] = WITHOUT_ROUNDING
    of_form = net if request.precision == "int8" else plain
    how: dict[str, Any] = {"samples": samples, "tell": tell}
    with make_folder(Path(folder).resolve(), overwrite=overwrite) as made, tempfile.TemporaryDirectory() as workplace:
        forms = _write_fp32(plain, Path(workplace), request, options, tolerance=tolerance, **facts, **how)
        if not request.is_fp32:
            forms[request.name] = Path(workplace) / "form"
            _write_form(of_form, forms["fp32"], forms[request.name], request, **how)
        found = measure_forms(
            of_form,
            forms,
            samples,
            checkpoint=checkpoint,
            threads=request.threads,
            runs=request.runs,
            progress=lambda done, total: tell(f"judging {request.name}: {done} of {total} steps"),
        )
        judging: dict[str, Any] = {"tolerance_points": request.tolerance_points, "allow_worse": request.allow_worse}
        verdict = judge_forms(found, load_manifest(forms["fp32"]), **judging, may_be_slow=(PARTED,))
        mark_bundle(forms[verdict.kept], verdict, verdict.kept)
        shutil.copytree(forms[verdict.kept], made, dirs_exist_ok=True)
    return verdict


def _write_fp32(net: SegNet, folder: Path, request: Request, options: GraphOptions, **how: Any) -> dict[str, Path]:
    """Bundles by name: one in fp32, and where two graphs in fp32 are all that is asked for, these beside one graph."""
    forms = {"fp32": options}
    if request.is_fp32 and options.parted:
        forms = {"fp32": replace(options, form="whole"), PARTED: options}
    for name, chosen in forms.items():
        export_bundle(net, folder / name, options=chosen, **how)
    return {name: folder / name for name in forms}


def _write_form(
    net: SegNet, fp32: Path, folder: Path, request: Request, *, samples: Sequence[Sample], tell: Tell
) -> None:
    """Fill ``folder``, and compare it with the net, which it need not agree with."""
    graphs = folder if request.engines is None else folder.with_name("graphs")
    graphs.mkdir()
    if request.precision == "fp16":
        write_half(net, fp32, graphs, tell=tell)
    elif is_rounding(net):
        tell("making the graph in 8 bits")
        write_trained(net, fp32, graphs, form="onnxruntime" if request.engines is None else "tensorrt")
    elif request.precision == "int8":
        quantizing = Quantizing(
            images=[field.image for field in request.fields],
            method=request.calibration,
            measure=open_loss(fp32, request.fields, tell=tell) if request.fields else None,
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
