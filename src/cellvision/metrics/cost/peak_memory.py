"""How much memory a bundle's net takes, told by the operating system, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from cellvision.errors import BundleError, explain

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Memory of a process that does one thing.

    Attributes:
        peak_mib: most that it held, the interpreter and its libraries included.
        growth_mib: most above what it held before the net was opened.
    """

    peak_mib: float
    growth_mib: float


def measure_bundle_memory(
    bundle: Path, *, batch: np.ndarray, threads: int | None = None, provider: str = "cpu"
) -> PeakMemory | None:
    """Memory of opening a bundle's net and running it twice; None where the system does not tell (not on Linux).

    Args:
        bundle: folder.
        batch: (B, C, H, W) counts of the graph's input dtype. In random ones an instance net finds few cells, and takes
            less memory than in an image of many.
        threads: of the processor; None for all cores.
        provider: "cpu", "cuda" ..; memory of a device is not counted.

    Raises:
        BundleError: the process failed; the text holds its last words.
    """
    with hand_over(batch) as file:
        given = {"bundle": str(bundle), "batch": file, "threads": threads, "provider": provider}
        return run_measurement([sys.executable, "-m", __name__, json.dumps(given)], what=str(bundle))


@contextmanager
def hand_over(batch: np.ndarray) -> Iterator[str]:
    """A file with an array, for another process, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch.npy"
        np.save(path, batch)
        yield str(path)


def run_measurement(command: Sequence[str], *, what: str) -> PeakMemory | None:
    """What a process prints about itself with `print_peak`; None where the system does not tell.

    Raises:
        BundleError: it failed.
    """
    if not _STATUS.is_file():
        return None
    # The working directory could hold a module of any name, and is not the business of a measurement.
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONSAFEPATH": "1"}
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BundleError(
            explain(
                got=f"{what}: the process that measures its memory failed ({words[-1][:300]})",
                need="a net that runs at this size and batch",
                hint="smaller images, or a smaller batch",
            )
        )
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def print_peak(work: Callable[[], object]) -> None:
    """Do the work, and print the peak of this process as a line of JSON."""
    before = _read_mib("VmRSS")
    work()
    peak = _read_mib("VmHWM")
    print(json.dumps({"peak_mib": round(peak, 1), "growth_mib": round(peak - before, 1)}))


def draw_counts(dtype: str, shape: tuple[int, ...], *, image_dtypes: Sequence[str] = ()) -> np.ndarray:
    """Random counts of a shape, the same each time, over the range of the images that a net was made for.

    Args:
        dtype: of the counts.
        shape: of the result.
        image_dtypes: of a manifest; counts of float32 go up to the largest of the smallest integers among them, or to
            1 where there are none. Those of an integer go over all its range.
    """
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype=np.dtype(dtype), endpoint=True)
    largest = min((np.iinfo(one).max for one in image_dtypes if np.issubdtype(one, np.integer)), default=1)
    return rng.random(shape, np.float32) * np.float32(largest)


def count_free_mib() -> int:
    """Memory in MiB that is free on this machine."""
    return max(1, int(psutil.virtual_memory().available / MIB))


_STATUS = Path("/proc/self/status")


def _read_mib(name: str) -> float:
    """VmHWM, the peak, or VmRSS of this process; ``getrusage`` would count the process that started it as well."""
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _main() -> None:
    given = json.loads(sys.argv[1])
    from cellvision.runtime.session import open_session

    bundle = Path(given["bundle"])

    def work() -> None:
        batch = np.load(given["batch"])
        session = open_session(bundle, threads=given["threads"], provider=given["provider"])
        for _ in range(2):
            session.run_batch(batch)

    print_peak(work)


if __name__ == "__main__":
    _main()
