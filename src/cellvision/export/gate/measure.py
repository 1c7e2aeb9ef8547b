"""A net and its exported forms, measured side by side: accuracy, agreement, speed, file size and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellvision.bundle import Detecting, Manifest, load_manifest
from cellvision.errors import CellvisionError, ExportError, explain
from cellvision.export.gate.found import Agreement, open_bundle, open_net
from cellvision.export.gate.latency import compare_speed, find_ratio, find_sure_ratio, open_net_run
from cellvision.export.gate.memory import measure_net_memory
from cellvision.export.parity.comparison import cut, to_dtype
from cellvision.metrics.accuracy import Accuracy, Found
from cellvision.metrics.cost.peak_memory import PeakMemory, measure_bundle_memory
from cellvision.metrics.cost.timing import WARM_UPS, RunBatch
from cellvision.models.base import SegNet
from cellvision.models.structure.fake_quant import is_rounding
from cellvision.runtime.maps.tile_run import Progress
from cellvision.runtime.session import open_session
from cellvision.runtime.tiles.budget import find_window_px
from cellvision.types import Sample

NET = "pytorch"
LARGEST_TIMED_PX = 1024
RUNS = 15


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One form of a net, or the net in PyTorch itself.

    Attributes:
        name: of the form; NET for the net.
        precision: "fp32", "fp16" or "int8".
        accuracy: scores on the true cells, see `Accuracy.compute`: 0..1, and viability error in points.
        cells: number of cells found.
        fields: that they were found in.
        agreement: with what the net in PyTorch found, see `Agreement.compute`; empty for the net itself.
        latency: one row per number of threads and batch: "threads", "shape" [B, C, H, W], the fields of `Latency`,
            of which "ratio" is to the first form, and "least_ratio".
        ratio: geometric mean of those ratios: so many times as long as the first form.
        least_ratio: the same of what each ratio is at least, with 95 % confidence; see `find_least_ratio`.
        size_bytes: of all graphs; None for the net.
        memory: of a process that opens it and runs one image; None where unknown.
        failure: why nothing could be measured, or "".
    """

    name: str
    precision: str = "fp32"
    accuracy: Mapping[str, float]
    cells: int
    fields: int
    agreement: Mapping[str, float]
    latency: Sequence[Mapping[str, Any]] = ()
    ratio: float = float("nan")
    least_ratio: float = float("nan")
    size_bytes: int | None = None
    memory: PeakMemory | None = None
    failure: str = ""

    def to_record(self) -> dict[str, Any]:
        """Plain data for a manifest: what was not measured is None or absent."""
        record = asdict(self) | {"latency": [dict(row) for row in self.latency]}
        record |= {key: record[key] if np.isfinite(record[key]) else None for key in ("ratio", "least_ratio")}
        return {key: value for key, value in record.items() if key not in ("name", "failure") or value}


def measure_forms(
    net: SegNet,
    forms: Mapping[str, Path],
    samples: Sequence[Sample],
    *,
    checkpoint: Path | None = None,
    threads: Sequence[int] = (),
    sizes: Sequence[tuple[int, int]] = (),
    batches: Sequence[int] = (1,),
    runs: int = RUNS,
    progress: Progress | None = None,
) -> tuple[Measurement, ...]:
    """The net in PyTorch, then each of its forms, measured on the same fields by the same code.

    Accuracy is of whole fields where they have up to 2048 px an edge, so that no tile's edge is taken for a difference.
    Times are of the net without the splitting, on the first fields' middle, all in turns; memory is of the first of
    these images. A form that fails in any of it, such as an engine of other sizes, has a ``failure``.

    Args:
        net: what was exported; it is not touched.
        forms: bundles by name; the first is the fp32 graph that the others' times are compared with.
        samples: with true cells; those of a validation set.
        checkpoint: of the net, for its memory in PyTorch; None leaves that unknown.
        threads: numbers of processor threads to time with; none takes as many as PyTorch uses.
        sizes: (H, W) in px to time; none takes that of the first field, up to 1024 px an edge and as all forms take it.
        batches: numbers of images per batch to time.
        runs: that count, for each time.
        progress: told (steps done, steps in all) after each field, round of times and process.

    Raises:
        ExportError: there is no sample, the net gives NaN, or the first form cannot be measured.
        BundleError: a bundle's manifest is not usable.
    """
    if not samples:
        raise ExportError(explain(got="no sample", need="at least one field with true cells", hint="samples=20"))
    manifests = {name: load_manifest(folder) for name, folder in forms.items()}
    threads = tuple(threads) or (torch.get_num_threads(),)
    trial = _Trial(net, forms, manifests, samples)
    sizes = tuple(sizes) or (trial.choose_size(samples[0]),)
    cases = [(height, width, number) for height, width in sizes for number in batches]
    steps = _Steps(progress, len(samples) + len(threads) * len(cases) * (WARM_UPS + runs) + len(forms) + 1)
    for sample in samples:
        trial.add(sample)
        steps.add()
    timed = _cut_batches(samples, cases, manifests)
    trial.rehearse(timed, threads=threads[0])
    first = next(iter(forms))
    if first in trial.failures:
        raise ExportError(f"{first}: {trial.failures[first]}")
    rows = _time(net, trial.sound, timed, detecting=manifests[first].detecting, threads=threads, runs=runs, steps=steps)
    memory = trial.weigh(timed, checkpoint, threads=threads[0], steps=steps)
    return tuple(
        Measurement(
            **trial.describe(name),
            latency=[_flatten(row, name) for row in rows if name in row["ways"]],
            **_compare(rows, name, failed=name in trial.failures),
            size_bytes=_sum_sizes(forms[name], manifests[name]) if name in forms else None,
            memory=memory.get(name),
        )
        for name in (NET, *forms)
    )


class _Trial:
    """The accuracy of the net and of its forms, and how far they agree, field by field."""

    def __init__(
        self, net: SegNet, forms: Mapping[str, Path], manifests: Mapping[str, Manifest], samples: Sequence[Sample]
    ) -> None:
        self._net, self._folders, self._manifests = net, forms, manifests
        first = next(iter(manifests.values()))
        largest_px = max(max(sample.label_image.shape) for sample in samples)
        self.failures: dict[str, str] = {}
        self._find = open_net(
            net, splitting=first.splitting, live_threshold=first.live_threshold, detecting=first.detecting
        )
        self._forms: dict[str, Callable[[Sample], Found]] = {}
        for name, folder in forms.items():
            with self._note(name):
                self._forms[name] = open_bundle(folder, largest_px=largest_px)
        threshold = first.splitting.foreground_threshold
        self._accuracy = {name: Accuracy(net.spec.classes, mask_threshold=threshold) for name in (NET, *forms)}
        self._agreement = {name: Agreement(net.spec.classes) for name in forms}
        self._fields = len(samples)

    def add(self, sample: Sample) -> None:
        """Predict a field in all ways; a form that fails is out from there on."""
        of_net = self._find(sample)
        self._accuracy[NET].add(sample, of_net)
        for name in self.sound:
            with self._note(name):
                found = self._forms[name](sample)
                self._accuracy[name].add(sample, found)
                self._agreement[name].add(of_net, found)

    def choose_size(self, sample: Sample) -> tuple[int, int]:
        """(H, W) px of a sample, within what is timed and what all forms take."""
        limits = [find_window_px(folder, self._manifests[name]) for name, folder in self.sound.items()]
        smallest = max((least for least, _ in limits), default=1)
        largest = min([LARGEST_TIMED_PX, *(most for _, most in limits)])
        height, width = (int(min(max(edge, smallest), largest)) for edge in sample.label_image.shape)
        return height, width

    def rehearse(self, batches: Mapping[str, Sequence[np.ndarray]], *, threads: int) -> None:
        """Run once what will be timed; a form that fails is out."""
        for name, folder in self.sound.items():
            with self._note(name):
                run = open_session(folder, threads=threads).run_batch
                for batch in batches[name]:
                    run(batch)

    def weigh(
        self, batches: Mapping[str, Sequence[np.ndarray]], checkpoint: Path | None, *, threads: int, steps: _Steps
    ) -> dict[str, PeakMemory | None]:
        """Memory by form for the first image, and of the net where there is a checkpoint to load it from."""
        memory: dict[str, PeakMemory | None] = {}
        images = {name: of_form[0][:1] for name, of_form in batches.items()}
        for name, folder in self.sound.items():
            with self._note(name):
                memory[name] = measure_bundle_memory(folder, batch=images[name], threads=threads)
            steps.add()
        if checkpoint is not None:
            detecting = next(iter(self._manifests.values())).detecting
            how: dict[str, Any] = {"threads": threads, "rounds": is_rounding(self._net), "detecting": detecting}
            memory[NET] = measure_net_memory(checkpoint, batch=images[NET], **how)
        steps.add()
        return memory

    @property
    def sound(self) -> dict[str, Path]:
        """The forms that have not failed."""
        return {name: folder for name, folder in self._folders.items() if name not in self.failures}

    @contextmanager
    def _note(self, name: str) -> Iterator[None]:
        """What fails in here, an engine without its GPU say, is a finding and not the end."""
        try:
            yield
        except CellvisionError as error:
            self.failures[name] = str(error)

    def describe(self, name: str) -> dict[str, Any]:
        """What is known of a form, as arguments of Measurement."""
        failed = name in self.failures
        agreement = self._agreement.get(name)
        return {
            "name": name,
            "precision": "fp32" if name == NET else self._manifests[name].graphs[0].precision,
            "accuracy": {} if failed else self._accuracy[name].compute(),
            "cells": 0 if failed else self._accuracy[name].cells,
            "fields": 0 if failed else self._fields,
            "agreement": {} if failed or agreement is None else agreement.compute(),
            "failure": self.failures.get(name, ""),
        }


class _Steps:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def add(self, *_: int) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)


def _cut_batches(
    samples: Sequence[Sample], cases: Sequence[tuple[int, int, int]], manifests: Mapping[str, Manifest]
) -> dict[str, list[np.ndarray]]:
    """By form, and for the net, a batch (B, C, H, W) of its input dtype for each case of (H, W, B)."""
    stacks = [
        np.stack([cut(samples[i % len(samples)].image, height, width) for i in range(number)])
        for height, width, number in cases
    ]
    dtypes = {name: manifest.input_dtype for name, manifest in manifests.items()} | {NET: "float32"}
    return {name: [to_dtype(stack, dtype) for stack in stacks] for name, dtype in dtypes.items()}


def _time(
    net: SegNet,
    forms: Mapping[str, Path],
    batches: Mapping[str, Sequence[np.ndarray]],
    *,
    detecting: Detecting | None,
    threads: Sequence[int],
    runs: int,
    steps: _Steps,
) -> list[dict[str, Any]]:
    """Rows of `compare_speed` of the forms and the net."""

    def open_form(folder: Path) -> Callable[[int], RunBatch]:
        return lambda number: open_session(folder, threads=number).run_batch

    open_way: dict[str, Callable[[int], RunBatch]] = {name: open_form(folder) for name, folder in forms.items()}
    open_way[NET] = lambda _: open_net_run(net, detecting=detecting)
    return compare_speed(open_way, batches, threads=threads, runs=runs, progress=steps.add)


def _compare(rows: Sequence[Mapping[str, Any]], name: str, *, failed: bool) -> dict[str, Any]:
    return {} if failed or not rows else {"ratio": find_ratio(rows, name), "least_ratio": find_sure_ratio(rows, name)}


def _flatten(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    facts = asdict(row["ways"][name]) | {"least_ratio": row["least_ratios"][name]}
    return {"threads": row["threads"], "shape": row["shape"], **facts}


def _sum_sizes(folder: Path, manifest: Manifest) -> int:
    return sum((folder / graph.file).stat().st_size for graph in manifest.graphs)
