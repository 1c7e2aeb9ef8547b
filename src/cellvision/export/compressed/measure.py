"""Bundles of several nets, measured in one go on the same fields: accuracy, times, memory, size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellvision.bundle import load_manifest
from cellvision.compression.run import LARGEST_FIELD_PX
from cellvision.export.gate.loss import score_bundle
from cellvision.export.parity.comparison import cut, to_dtype
from cellvision.export.progress import Tell
from cellvision.metrics.cost.peak_memory import measure_bundle_memory
from cellvision.metrics.cost.timing import summarise, time_in_turns
from cellvision.report.lines import count_threads
from cellvision.report.record import Timing
from cellvision.runtime.maps.tile_run import Progress
from cellvision.runtime.session import Session, open_session
from cellvision.types import Sample

TIMED_PX = LARGEST_FIELD_PX
"""Longest edge that is timed: what a runtime shows a net at once of a larger image."""

MOST_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one bundle; fields as in `ReportRow`."""

    precision: str
    accuracy: Mapping[str, float]
    cells: int
    size_bytes: int
    timings: tuple[Timing, ...]
    peak_mib: float | None


def choose_case(samples: Sequence[Sample]) -> tuple[tuple[int, int], int]:
    """(H, W) px that are timed, and how many such images at once: together no more pixels than the largest one.

    Every bundle is open while they take turns, so that this bounds the memory.
    """
    height, width = (min(edge, TIMED_PX) for edge in samples[0].image.shape[1:])
    return (height, width), max(1, min(MOST_AT_ONCE, TIMED_PX**2 // (height * width)))


def measure_bundles(
    bundles: Mapping[str, Path],
    samples: Sequence[Sample],
    *,
    threads: Sequence[int],
    runs: int,
    tell: Tell,
) -> dict[str, Measured]:
    """What each bundle finds and costs.

    Accuracy is measured of one bundle after the other, times in turns, memory in processes of their own.

    Args:
        bundles: by name; the times of all are compared with the first.
        samples: held-out fields with true cells.
        threads: numbers of processor threads, rising.
        runs: of each bundle that count, for times.
        tell: called with lines on the progress.

    Raises:
        BundleError: a bundle does not run.
    """
    scored = {name: score_bundle(folder, samples, tell=_prefix(name, tell)) for name, folder in bundles.items()}
    size, batch = choose_case(samples)
    timings = _time(bundles, samples, threads=threads, size=size, batch=batch, runs=runs, tell=tell)
    found = {}
    for name, folder in bundles.items():
        tell(f"memory of {name}")
        manifest = load_manifest(folder)
        image = to_dtype(cut(samples[0].image, *size), manifest.input_dtype)
        memory = measure_bundle_memory(folder, batch=image[None], threads=threads[-1])
        found[name] = Measured(
            precision=manifest.graphs[0].precision,
            accuracy=scored[name].compute(),
            cells=scored[name].cells,
            size_bytes=sum((folder / graph.file).stat().st_size for graph in manifest.graphs),
            timings=timings[name],
            peak_mib=memory.peak_mib if memory else None,
        )
    return found


def _time(
    bundles: Mapping[str, Path],
    samples: Sequence[Sample],
    *,
    threads: Sequence[int],
    size: tuple[int, int],
    batch: int,
    runs: int,
    tell: Tell,
) -> dict[str, tuple[Timing, ...]]:
    """By name: one image with each number of threads, then ``batch`` images with the most of them."""
    dtypes = {name: load_manifest(folder).input_dtype for name, folder in bundles.items()}
    found: dict[str, list[Timing]] = {name: [] for name in bundles}
    for number, images in [(number, 1) for number in threads] + [(threads[-1], batch)] * (batch > 1):
        stack = np.stack([cut(samples[at % len(samples)].image, *size) for at in range(images)])
        ways = {
            name: _bind(open_session(folder, threads=number), to_dtype(stack, dtypes[name]))
            for name, folder in bundles.items()
        }
        words = f"times of {images} image{'s' * (images > 1)}, {count_threads(number)}"
        times_ms = time_in_turns(ways, runs=runs, progress=_tell_rounds(words, tell))
        for name, latency in summarise(times_ms, shape=stack.shape).items():
            timing = Timing(threads=number, batch=images, latency=latency, times_ms=tuple(times_ms[name]))
            found[name].append(timing)
    return {name: tuple(timings) for name, timings in found.items()}


def _bind(session: Session, batch: np.ndarray) -> Callable[[], object]:
    return lambda: session.run_batch(batch)


def _tell_rounds(words: str, tell: Tell) -> Progress:
    return lambda done, total: tell(f"{words}: {done} of {total} rounds")


def _prefix(name: str, tell: Tell) -> Tell:
    return lambda text: tell(f"{name}: {text}")
