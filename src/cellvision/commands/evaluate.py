"""``cellvision evaluate``: what is scored is what is deployed, the bundle itself, next to a baseline without a net."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellvision.bundle import Channel, Manifest
from cellvision.commands.evaluation.truth import Truth, find_channel_names
from cellvision.commands.lines import to_line
from cellvision.data.dataset import CellDataset
from cellvision.metrics.accuracy import Accuracy, Found
from cellvision.metrics.baseline import OtsuBaseline
from cellvision.metrics.cells import FieldScore, compute_cell_scores, compute_field_score, has_viability, sum_fields
from cellvision.metrics.semantic import compute_confusion, compute_semantic_scores
from cellvision.metrics.viability import FieldViability, compute_field_viability, compute_viability_scores
from cellvision.runtime.cells import Cells
from cellvision.runtime.maps.tile_run import Progress
from cellvision.runtime.predictor import Predictor
from cellvision.types import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Scores of one bundle on one set of fields.

    Attributes:
        manifest: of the bundle.
        classes: that were scored, background first.
        names: of the fields.
        fingerprint: of the data.
        scores: flat, "pixel/..", "cell/.." and "field/.."; undefined ones are absent.
        baseline: the same of the Otsu baseline ("cell/..", "field/.."), or None where it cannot be applied.
        fields: viability per field, in order of ``names``; empty where live and dead are not told apart.
        baseline_fields: the same of the baseline.
    """

    manifest: Manifest
    classes: tuple[str, ...]
    names: tuple[str, ...]
    fingerprint: str
    scores: dict[str, float]
    baseline: dict[str, float] | None
    fields: tuple[FieldViability, ...]
    baseline_fields: tuple[FieldViability, ...]

    def to_record(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        names = self.names if self.fields else ()
        beside = self.baseline_fields or (None,) * len(names)
        return {
            "model": self.manifest.model,
            "graph_sha256": self.manifest.graphs[0].sha256,
            "classes": list(self.classes),
            "data": {"images": len(self.names), "fingerprint": self.fingerprint},
            "scores": self.scores,
            "baseline": self.baseline,
            "fields": [
                {"image": name, "viability": asdict(found), "baseline": other and asdict(other)}
                for name, found, other in zip(names, self.fields, beside, strict=True)
            ],
        }


def evaluate_bundle(
    predictor: Predictor, truth: Truth, *, intensity_scale: float | None = None, progress: Progress | None = None
) -> Evaluation:
    """Scores of a bundle over all fields of ``truth``: pixels, cells at IoU 0.5, classes, viability per field.

    The baseline is applied where the truth tells live from dead and the images have a channel of the role "dead" and
    one of the role "nuclear" or "live"; the roles are those of ``truth``, else the bundle's. It is told the bundle's
    ``nucleus_margin_px`` and smallest cell.

    Args:
        predictor: an open bundle.
        truth: from `open_truth`.
        intensity_scale: factor from the images' counts to the training counts.
        progress: told after each field: (fields done, fields in all).

    Raises:
        CellvisionError: as the predictor and the data set raise.
    """
    names = find_channel_names(truth.dataset)
    baseline = _make_baseline(predictor.manifest, truth, names)
    confusion = np.zeros((len(truth.classes), len(truth.classes)), np.int64)
    found, beside = [], []
    instances = Accuracy(truth.classes, mask_threshold=predictor.manifest.splitting.foreground_threshold)
    for done, sample in enumerate(truth.iterate_samples(), start=1):
        given: dict[str, Any] = {"channel_names": names, "intensity_scale": intensity_scale}
        if predictor.manifest.kind == "instance":
            cells = predictor(sample.image, **given)
            pixels = np.concatenate([[0], cells.class_id])[cells.label_image]
            instances.add(sample, Found(cells=cells, detections=predictor.detect(sample.image, **given)))
        else:
            cells, probabilities = predictor.predict_with_probabilities(sample.image, **given)
            pixels = probabilities.argmax(axis=0)
        if truth.classes != predictor.manifest.classes:
            pixels = np.minimum(pixels, 1)
        confusion += compute_confusion(pixels, sample.class_map, len(truth.classes))
        found.append(_score_cells(cells, sample, truth.classes))
        if baseline:
            beside.append(_score_baseline(baseline, sample, truth.classes))
        if progress:
            progress(done, len(truth))
    scores, fields = _summarise(found, truth.classes)
    baseline_scores, baseline_fields = _summarise(beside, truth.classes)
    return Evaluation(
        manifest=predictor.manifest,
        classes=truth.classes,
        names=truth.dataset.names,
        fingerprint=truth.dataset.fingerprint(),
        scores=compute_semantic_scores(confusion).to_dict(truth.classes) | scores | _compute_instances(instances),
        baseline=baseline_scores if baseline else None,
        fields=fields,
        baseline_fields=baseline_fields if baseline else (),
    )


def _compute_instances(accuracy: Accuracy) -> dict[str, float]:
    """Average precision of masks, of the boxes that a bundle's min_score lets pass; none for other nets."""
    return {name: value for name, value in accuracy.compute().items() if name.startswith(("mask/", "instance/"))}


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """Write the evaluation as JSON; a path from `StagedFiles` gets its name when the file is complete."""
    text = json.dumps(evaluation.to_record(), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def print_scores(evaluation: Evaluation) -> None:
    """Print the scores, and the viability of each field, as tables on stdout."""
    console = Console()
    table = Table("score", "bundle", "Otsu baseline", title=f"{len(evaluation.names)} images")
    for name, value in evaluation.scores.items():
        table.add_row(name, f"{value:.3f}", _format((evaluation.baseline or {}).get(name), ".3f"))
    console.print(table)
    if not evaluation.fields:
        return
    table = Table("field", "true %", "bundle %", "interval", "error", "baseline %", "error", title="viability")
    beside = evaluation.baseline_fields or (None,) * len(evaluation.fields)
    for name, field, other in zip(evaluation.names, evaluation.fields, beside, strict=True):
        low, high = field.predicted.low, field.predicted.high
        table.add_row(
            Text(to_line(name)),
            _format(field.true.viability, ".1%"),
            _format(field.predicted.viability, ".1%"),
            f"{_format(low, '.1%')} to {_format(high, '.1%')}",
            _format(field.error_pp, "+.1f"),
            _format(other.predicted.viability if other else None, ".1%"),
            _format(other.error_pp if other else None, "+.1f"),
        )
    console.print(table)


def _make_baseline(manifest: Manifest, truth: Truth, names: tuple[str, ...] | None) -> OtsuBaseline | None:
    channels = _find_roles(truth.dataset, manifest, names)
    roles = {channel.role for channel in channels}
    if not has_viability(truth.classes) or "dead" not in roles or not roles & {"nuclear", "live"}:
        return None
    # What the net learned from the annotations, the baseline is told: where outlines lie, and the smallest cell.
    return OtsuBaseline(
        channels,
        classes=truth.classes,
        expand_px=manifest.nucleus_margin_px,
        min_area_px=manifest.splitting.min_area_px,
    )


def _find_roles(dataset: CellDataset, manifest: Manifest, names: tuple[str, ...] | None) -> tuple[Channel, ...]:
    """The images' channels with their roles: said for the data, else the bundle's for the channels it knows."""
    if any(channel.role for channel in dataset.channels):
        return dataset.channels
    if names is None:
        return manifest.channels
    role_of = {channel.name: channel.role for channel in manifest.channels}
    return tuple(Channel(name=name, role=role_of.get(name, "")) for name in names)


def _score_cells(cells: Cells, sample: Sample, classes: tuple[str, ...]) -> FieldScore:
    assert cells.label_image is not None
    return compute_field_score(
        pred_label_image=cells.label_image,
        pred_classes=cells.class_id if cells.classes == classes else np.ones(len(cells), np.int64),
        true_label_image=sample.label_image,
        true_classes=sample.cell_classes,
        classes=classes,
        p_live=cells.p_live if has_viability(classes) else None,
    )


def _score_baseline(baseline: OtsuBaseline, sample: Sample, classes: tuple[str, ...]) -> FieldScore:
    found = baseline(sample.image)
    return compute_field_score(
        pred_label_image=found.label_image,
        pred_classes=found.cell_classes,
        true_label_image=sample.label_image,
        true_classes=sample.cell_classes,
        classes=classes,
        p_live=found.p_live,
    )


def _summarise(
    found: list[FieldScore], classes: tuple[str, ...]
) -> tuple[dict[str, float], tuple[FieldViability, ...]]:
    scores = compute_cell_scores(sum_fields(found, len(classes))).to_dict(classes)
    if not has_viability(classes):
        return scores, ()
    fields = []
    for field in found:
        true_live, true_dead, pred_live, pred_dead = field.count_viability(classes)
        fields.append(
            compute_field_viability(true_live=true_live, true_dead=true_dead, pred_live=pred_live, pred_dead=pred_dead)
        )
    return scores | compute_viability_scores(fields).to_dict(), tuple(fields)


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
