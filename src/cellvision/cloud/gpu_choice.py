"""Which of Azure's GPU machines suits a training, from what it was measured to need: ``python -m`` this module."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellvision.cloud.options import KEY
from cellvision.errors import CellvisionError, ConfigError, check_choice, explain

TABLE = Path(__file__).with_name("gpu_sizes.json")

MOST_NODES = 100

USABLE = 0.88
"""Share of a GPU's memory that a training gets, an estimate: the driver shows a T4 as 14.6 of its 16, and some of that
goes to fragments."""


@dataclass(frozen=True, kw_only=True)
class GpuSize:
    """A machine of Azure: its name, kind and number of its GPUs, memory of each in GB, CPUs, memory of the machine.

    ``read`` says whether the kind, number and memory of its GPUs were read on a page of Microsoft's for this table.
    """

    name: str
    gpu: str
    gpus: int
    gpu_memory_gb: float
    cpus: int
    memory_gib: float
    read: bool


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A machine, how many of them, and the hours that they take; None where nothing was measured on such a GPU."""

    size: GpuSize
    nodes: int
    hours: float | None

    @property
    def settings(self) -> str:
        """What makes the launcher use it."""
        machine = f"{KEY}.compute=null {KEY}.instance_type={self.size.name}"
        return f"{machine} {KEY}.gpus={self.size.gpus} {KEY}.nodes={self.nodes}"


def load_sizes() -> tuple[str, list[GpuSize]]:
    """Date of the table, and its sizes, from the smallest GPU memory up."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    sizes = [GpuSize(**row) for row in table["sizes"]]
    return table["date"], sorted(sizes, key=lambda size: (size.gpu_memory_gb, size.gpus, size.cpus))


def recommend(*, peak_gib: float, step_ms: float, steps: int, measured_on: str, hours: float) -> Advice:
    """The smallest machine that has the memory, and enough of its GPUs for the time.

    Args:
        peak_gib: most memory that one process held on its GPU, in GiB, at the batch size that is meant.
        step_ms: time of one step there, in ms.
        steps: how many a training with one GPU has; with n GPUs it has an n-th of them, of the same batch each, and is
            taken to be n times as fast, which it is at best.
        measured_on: kind of that GPU, as in the table. How much faster another kind is cannot be told from its data.
        hours: that the training may take.

    Raises:
        ConfigError: a kind that is not in the table, numbers out of range, or more memory than any GPU has.
    """
    _, sizes = load_sizes()
    check_choice("measured_on", measured_on, sorted({size.gpu for size in sizes}))
    for name, value in (("peak_gib", peak_gib), ("step_ms", step_ms), ("steps", steps), ("hours", hours)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(explain(got=f"{name}={value}", need="a number above 0", hint="what was measured"))
    fitting = [size for size in sizes if size.gpu_memory_gb * USABLE >= peak_gib]
    if not fitting:
        most = sizes[-1]
        got, need = f"{peak_gib:g} GiB at the peak", f"at most {most.gpu_memory_gb * USABLE:.0f}, of {most.gpu}"
        raise ConfigError(explain(got=got, need=need, hint="a smaller data.batch_size or crop"))
    same = [size for size in fitting if size.gpu == measured_on]
    if not same:
        return Advice(size=min(fitting, key=lambda size: (size.gpus, size.gpu_memory_gb)), nodes=1, hours=None)
    one = step_ms * steps / 3.6e6
    enough = [size for size in same if size.gpus * hours >= one]
    size = min(enough, key=lambda size: size.gpus) if enough else max(same, key=lambda size: size.gpus)
    nodes = math.ceil(one / (hours * size.gpus))
    if nodes > MOST_NODES:
        got, need = f"{one:.3g} hours of one {size.gpu} in {hours:g}", f"no more than {MOST_NODES} machines"
        least = math.ceil(100 * one / (MOST_NODES * size.gpus)) / 100
        raise ConfigError(explain(got=got, need=need, hint=f"--hours {least:.2f} or more"))
    return Advice(size=size, nodes=nodes, hours=one / (nodes * size.gpus))


def main(words: Sequence[str] | None = None) -> int:
    """Print the advice for what the command line says; exit status 2 and one sentence where there is none."""
    parser = argparse.ArgumentParser(prog="python -m cellvision.cloud.gpu_choice", description=__doc__)
    parser.add_argument("--peak-gib", type=float, required=True, help="most GPU memory of one process, in GiB")
    parser.add_argument("--step-ms", type=float, required=True, help="time of one step, in ms")
    parser.add_argument("--steps", type=int, required=True, help="steps of the training with one GPU")
    parser.add_argument("--measured-on", required=True, help="kind of GPU, e.g. T4")
    parser.add_argument("--hours", type=float, required=True, help="that the training may take")
    try:
        advice = recommend(**vars(parser.parse_args(words)))
    except CellvisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size, time = advice.size, "time unknown: measure a few steps there"
    if advice.hours is not None:
        time = f"{advice.hours:.1f} h at best"
    print(f"{advice.nodes} x {size.name}: {size.gpus} {size.gpu} of {size.gpu_memory_gb:g} GB each; {time}")
    print(advice.settings)
    print(f"sizes as of {load_sizes()[0]}; what a region has: az vm list-skus --location REGION --size Standard_N")
    return 0


if __name__ == "__main__":
    sys.exit(main())
