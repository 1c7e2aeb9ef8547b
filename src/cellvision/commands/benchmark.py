"""``cellvision benchmark``: bundles side by side on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.bundle import Manifest
from cellvision.commands.benchmarking.inputs import USUAL_PX, BenchmarkImages, load_images
from cellvision.commands.evaluation.truth import Truth, find_channel_names, open_truth
from cellvision.metrics.accuracy import Accuracy, Found
from cellvision.metrics.cost.operator_times import OperatorTime, profile_bundle
from cellvision.metrics.cost.peak_memory import PeakMemory, measure_bundle_memory
from cellvision.metrics.cost.timing import WARM_UPS, Latency, describe_machine, summarise, time_in_turns
from cellvision.runtime.maps.tile_run import Progress
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.session import Session, open_session

MOST_IMAGES = 16
PROFILED_RUNS = 10


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One bundle with one number of threads and one batch.

    Attributes:
        bundle: name.
        threads: of the processor.
        batch: number of images.
        latency: of the net; its ratio is to the first bundle.
        memory: of a process that opens the net and runs the batch; None where the system does not tell.
    """

    bundle: str
    threads: int
    batch: int
    latency: Latency
    memory: PeakMemory | None


class Benchmark:
    """The measurements of bundles; `run` makes them, and what was made before an error stays.

    Attributes:
        manifests: by the bundle's name: its folder's, with a number where two are called the same.
        folders: the same.
        inputs: the images.
        rows: in the order in which they were measured.
        accuracy: scores by bundle; those of the manifest, or measured.
        measured_on: number of fields that accuracy was measured on by bundle; none are in here for the manifest's.
        profiles: types of operators by bundle.
        complete: whether all was measured.
    """

    def __init__(
        self,
        *,
        bundles: Sequence[Path],
        images: Path | None = None,
        size: tuple[int, int] | None = None,
        truth: Path | None = None,
        table: Path | None = None,
        threads: Sequence[int] | None = None,
        batch: Sequence[int] = (1,),
        runs: int = 20,
        profile: bool = False,
        provider: str = "cpu",
        channels: tuple[str, ...] | None = None,
        intensity_scale: float | None = None,
    ) -> None:
        """Open everything that is needed, so that what cannot be used costs no time.

        Args:
            bundles: folders; the others' times are compared with the first.
            images: folder or file of images to measure with; None takes random counts.
            size: (H, W) of random images.
            truth: folder of label images, or a COCO file, beside ``images``; None takes the manifests' accuracy.
            table: classes of the cells of label images.
            threads: numbers of processor threads; None for one per core.
            batch: numbers of images per batch.
            runs: that count, for each time.
            profile: look at the types of operators too.
            provider: "cpu", "cuda" ..; no fallback to another.
            channels: names of the images' channels, or None for those in the files.
            intensity_scale: factor from the images' counts to the training counts.

        Raises:
            CellvisionError: a bundle, an image or the truth cannot be used, or they do not suit each other.
        """
        self.folders = dict(zip(_name(bundles), bundles, strict=True))
        opened = {name: open_session(folder, provider=provider) for name, folder in self.folders.items()}
        self.manifests: dict[str, Manifest] = {name: session.manifest for name, session in opened.items()}
        meaning: dict[str, Any] = {"channels": channels, "intensity_scale": intensity_scale}
        first = next(iter(self.manifests.values()))
        self.inputs = (
            load_images(images, most=min(max(batch), MOST_IMAGES), window=first, **meaning)
            if images
            else BenchmarkImages(size=size or USUAL_PX)
        )
        for manifest in self.manifests.values():
            self.inputs.build_batch(manifest, 1)
        self._truths = {
            name: _open_truth(manifest, images, truth, table=table, channels=channels)
            for name, manifest in self.manifests.items()
            if truth is not None and images is not None
        }
        self._threads, self._batch, self._runs = tuple(threads or (describe_machine()["cores"],)), tuple(batch), runs
        self._profile, self._provider, self._scale = profile, provider, intensity_scale
        self.rows: list[BenchmarkRow] = []
        self.accuracy = {name: find_accuracy(manifest) for name, manifest in self.manifests.items()}
        self.measured_on: dict[str, int] = {}
        self.profiles: dict[str, tuple[OperatorTime, ...]] = {}
        self.complete = False

    def run(self, progress: Progress | None = None) -> None:
        """Measure everything; ``progress`` is told (steps done, steps in all).

        Raises:
            CellvisionError: a net failed on an image.
        """
        count, configurations = len(self.folders), len(self._threads) * len(self._batch)
        total = configurations * (WARM_UPS + self._runs + count) + sum(map(len, self._truths.values()))
        total += count * self._profile
        done = 0

        def step(*_: int) -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, total)

        for threads in self._threads:
            sessions = {
                name: open_session(folder, provider=self._provider, threads=threads)
                for name, folder in self.folders.items()
            }
            for number in self._batch:
                self._measure(sessions, threads, number, step)
        for name, truth in self._truths.items():
            self.accuracy[name] = self._score(name, truth, step)
            self.measured_on[name] = len(truth)
        for name in self.folders if self._profile else ():
            self.profiles[name] = self._look_inside(name)
            step()
        self.complete = True

    def to_record(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "machine": describe_machine(),
            "provider": self._provider,
            "complete": self.complete,
            "size": list(self.inputs.size),
            "images": [info.path.name for _, info in self.inputs.images],
            "runs": self._runs,
            "bundles": {
                name: {
                    "folder": str(self.folders[name]),
                    "model": manifest.model,
                    "kind": manifest.kind,
                    "graphs": [asdict(graph) for graph in manifest.graphs],
                    "size_bytes": self.find_size(name),
                    "accuracy": self.accuracy[name],
                    "accuracy_measured_on": self.measured_on.get(name),
                    "operators": [asdict(row) for row in self.profiles.get(name, ())],
                }
                for name, manifest in self.manifests.items()
            },
            "rows": [asdict(row) for row in self.rows],
        }

    def find_size(self, name: str) -> int:
        """Bytes of a bundle's graphs."""
        return sum((self.folders[name] / graph.file).stat().st_size for graph in self.manifests[name].graphs)

    def _measure(self, sessions: Mapping[str, Session], threads: int, number: int, step: Callable[..., None]) -> None:
        """The rows of all bundles for one number of threads and one batch."""
        batches = {name: self.inputs.build_batch(self.manifests[name], number) for name in sessions}
        ways = {name: _bind(sessions[name], batches[name]) for name in sessions}
        found = summarise(time_in_turns(ways, runs=self._runs, progress=step), shape=(number, 1, *self.inputs.size))
        rows = []
        for name, folder in self.folders.items():
            memory = measure_bundle_memory(folder, batch=batches[name], threads=threads, provider=self._provider)
            rows.append(BenchmarkRow(bundle=name, threads=threads, batch=number, latency=found[name], memory=memory))
            step()
        self.rows += rows

    def _score(self, name: str, truth: Truth, step: Callable[..., None]) -> dict[str, float]:
        manifest = self.manifests[name]
        predictor = Predictor(self.folders[name], provider=self._provider)
        accuracy = Accuracy(truth.classes, mask_threshold=manifest.splitting.foreground_threshold)
        how: dict[str, Any] = {"channel_names": find_channel_names(truth.dataset), "intensity_scale": self._scale}
        for sample in truth.iterate_samples():
            if manifest.kind == "instance":
                cells = predictor(sample.image, **how)
                found = Found(cells=cells, detections=predictor.detect(sample.image, **how))
            else:
                cells, probabilities = predictor.predict_with_probabilities(sample.image, **how)
                found = Found(cells=cells, probabilities=probabilities)
            accuracy.add(sample, found)
            step()
        return accuracy.compute()

    def _look_inside(self, name: str) -> tuple[OperatorTime, ...]:
        batch = self.inputs.build_batch(self.manifests[name], self._batch[0])
        runs = min(self._runs, PROFILED_RUNS)
        return profile_bundle(self.folders[name], batch, runs=runs, threads=self._threads[0], provider=self._provider)


def find_accuracy(manifest: Manifest) -> dict[str, float]:
    """The scores that a manifest tells of: of this very form where the gate has measured it, else of the trained net.

    Example:
        >>> from types import SimpleNamespace
        >>> find_accuracy(SimpleNamespace(gate={}, accuracy={"val/pixel/miou": 0.9}))
        {'pixel/miou': 0.9}
    """
    scores = _find_form(manifest).get("accuracy")
    found = scores if isinstance(scores, dict) and scores else manifest.accuracy
    return {name.removeprefix("val/"): value for name, value in found.items() if isinstance(value, int | float)}


def count_fields(manifest: Manifest) -> int | None:
    """How many fields the scores of `find_accuracy` are of; None where the manifest does not tell."""
    form = _find_form(manifest)
    number = form.get("fields") if form.get("accuracy") else None
    return number if isinstance(number, int) else None


def _find_form(manifest: Manifest) -> dict[str, Any]:
    """What the gate has measured of a bundle's own form; empty where it has not."""
    forms = manifest.gate.get("forms", {})
    form = forms.get(manifest.gate.get("form"), {}) if isinstance(forms, dict) else {}
    return form if isinstance(form, dict) else {}


def _open_truth(
    manifest: Manifest,
    images: Path,
    truth: Path,
    *,
    table: Path | None,
    channels: tuple[str, ...] | None,
) -> Truth:
    labels, coco = (truth, None) if truth.is_dir() else (None, truth)
    return open_truth(manifest, images=images, labels=labels, coco=coco, table=table, channels=channels)


def _bind(session: Session, batch: np.ndarray) -> Callable[[], object]:
    return lambda: session.run_batch(batch)


def _name(bundles: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with that of the folder around it, or a number, where two are the same."""
    names = [folder.resolve().name for folder in bundles]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{folder.resolve().name}" for folder in bundles]
    return [
        name if name not in names[:at] else f"{name} ({names[:at].count(name) + 1})" for at, name in enumerate(names)
    ]
