"""The command line of ``cellvision benchmark``; what it does is loaded when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.errors import CellvisionError, ConfigError, explain

if TYPE_CHECKING:
    from cellvision.commands.benchmark import Benchmark

RESULTS = ("benchmark.json", "benchmark.png")


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="bundles, compared with the first")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--images", type=Path, metavar="DIR", help="images to measure with, or one image file")
    images.add_argument("--size", type=_read_size, metavar="HxW", help="random images of this size (512x512)")
    parser.add_argument("--truth", type=Path, metavar="PATH", help="label images or COCO file, to measure accuracy")
    parser.add_argument("--classes", type=Path, metavar="CSV", help="with label images: table with image, label, class")
    parser.add_argument("--threads", type=_read_numbers, metavar="A,B", help="processor threads (all cores)")
    parser.add_argument("--batch", type=_read_numbers, default=(1,), metavar="A,B", help="images per batch (1)")
    parser.add_argument("--runs", type=_read_number, default=20, metavar="N", help="timed runs of each (20)")
    parser.add_argument("--profile", action="store_true", help="show the types of operators that take the time")
    parser.add_argument("--provider", default="cpu", metavar="NAME", help="cpu (default), cuda ..; no fallback")
    parser.add_argument("--channels", type=_read_names, metavar="A,B", help="names of the images' channels in order")
    parser.add_argument("--intensity-scale", type=float, metavar="F", help="factor to the training counts")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {' and '.join(RESULTS)}")


def run_benchmark(chosen: argparse.Namespace) -> int:
    """Measure bundles side by side: size, time, throughput, peak memory and accuracy.

    Times are of the net alone, in turns, so that a busy machine slows all alike; memory is that of a process of its
    own. Accuracy is the manifest's, or measured with --truth.
    """
    from contextlib import nullcontext

    from cellvision.commands.benchmark import Benchmark
    from cellvision.commands.benchmarking.chart import draw_benchmark
    from cellvision.commands.benchmarking.tables import print_benchmark
    from cellvision.commands.progress import show_progress
    from cellvision.runtime.files.writers import StagedFiles

    _check(chosen)
    stopped: BaseException | None = None
    # Staged before the work: a place that cannot be written must not cost a measurement.
    with StagedFiles(chosen.out) if chosen.out else nullcontext() as staged:
        parts = [staged.path(name) for name in RESULTS] if staged else []
        benchmark = Benchmark(**_collect(chosen))
        with show_progress("benchmark", unit="steps") as progress:
            try:
                benchmark.run(progress)
            except (KeyboardInterrupt, CellvisionError, OSError, MemoryError) as error:
                stopped = error
                if not benchmark.rows:
                    raise
        # What was measured before an error stays.
        if parts:
            _write(benchmark, *parts, draw=draw_benchmark)
    print_benchmark(benchmark)
    if stopped is not None:
        raise stopped
    return 0


def _collect(chosen: argparse.Namespace) -> dict[str, Any]:
    same = ("bundles", "images", "size", "truth", "batch", "runs", "profile", "provider", "channels", "intensity_scale")
    return {name: getattr(chosen, name) for name in same} | {"table": chosen.classes, "threads": chosen.threads}


def _write(benchmark: Benchmark, record: Path, picture: Path, *, draw: Any) -> None:
    import json

    text = json.dumps(benchmark.to_record(), indent=2, ensure_ascii=False, allow_nan=False)
    record.write_text(text + "\n", encoding="utf-8")
    draw(benchmark, picture)


def _check(chosen: argparse.Namespace) -> None:
    """Raise ConfigError where options do not go together, or results would lie where they must not."""
    if chosen.truth is not None and chosen.images is None:
        raise ConfigError(explain(got="--truth without --images", need="both", hint="--images DIR --truth PATH"))
    if chosen.classes is not None and chosen.truth is None:
        got = "--classes without --truth"
        raise ConfigError(explain(got=got, need="label images beside it", hint="--truth LABELS --classes CSV"))
    if chosen.truth is not None and not chosen.images.is_dir():
        got, need = f"--images {chosen.images} with --truth", "a folder of the images that the truth is of"
        raise ConfigError(explain(got=got, need=need, hint=f"--images {chosen.images.parent}"))
    if chosen.out is None:
        return
    inputs = [*chosen.bundles, *(path for path in (chosen.images, chosen.truth) if path is not None)]
    if any(chosen.out.resolve() in (path.resolve(), path.resolve().parent) for path in inputs if path.is_file()) or any(
        chosen.out.resolve() == path.resolve() for path in inputs
    ):
        got = f"--out {chosen.out}, where a bundle or an image lies"
        raise ConfigError(explain(got=got, need="a folder of its own", hint=f"--out {chosen.out / 'benchmark'}"))
    if old := [name for name in RESULTS if (chosen.out / name).exists()]:
        got = f"--out {chosen.out} holds the {old[0]} of another run"
        raise ConfigError(explain(got=got, need="a folder for each run", hint="another --out, or remove it"))


def _read_size(text: str) -> tuple[int, int]:
    try:
        height, width = (_read_number(part) for part in text.lower().split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no height and width like 520x704") from None
    return height, width


def _read_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(_read_number(part) for part in text.split(",")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers from 1 up like 1,2,4") from None


def _read_number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return number


def _read_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
