"""How right a bundle is on fields with true cells, and how many points another loses against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cellvision.bundle import load_manifest
from cellvision.export.gate.found import open_bundle
from cellvision.export.progress import Tell, say_nothing
from cellvision.metrics.accuracy import Accuracy, choose_headlines
from cellvision.types import Sample


def score_bundle(folder: Path, samples: Sequence[Sample], *, tell: Tell = say_nothing) -> Accuracy:
    """The accuracy of a bundle.

    Args:
        folder: of the bundle.
        samples: with true cells, at least one.
        tell: called with a line after each.

    Raises:
        BundleError: the bundle does not run.
    """
    manifest = load_manifest(folder)
    accuracy = Accuracy(manifest.classes, mask_threshold=manifest.splitting.foreground_threshold)
    predict = open_bundle(folder, largest_px=max(max(sample.label_image.shape) for sample in samples))
    for done, sample in enumerate(samples, start=1):
        accuracy.add(sample, predict(sample))
        tell(f"accuracy: {done} of {len(samples)} fields")
    return accuracy


def open_loss(reference: Path, samples: Sequence[Sample], *, tell: Tell = say_nothing) -> Callable[[Path], float]:
    """What measures the points that a bundle loses against the reference, in the score that suffers most.

    NaN where the reference has no score: there are no true cells.

    Args:
        reference: bundle, measured at once.
        samples: as for `score_bundle`.
        tell: the same.
    """
    manifest = load_manifest(reference)
    before = score_bundle(reference, samples, tell=tell).compute()
    headlines = [each for each in choose_headlines(manifest.kind, manifest.classes) if each.score in before]

    def measure(folder: Path) -> float:
        after = score_bundle(folder, samples, tell=tell).compute()
        lost = [each.lose(before[each.score], after.get(each.score, float("nan"))) for each in headlines]
        return max(lost, default=float("nan"))

    return measure
