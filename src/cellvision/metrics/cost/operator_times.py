"""Where the time of a bundle's graphs goes: ONNX Runtime's own profile, summed by type of operator."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.errors import BundleError, explain
from cellvision.runtime.session import open_session

_NODE_END = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All operators of one type in one graph.

    Attributes:
        graph: role of the graph in a bundle of several; "" where there is one.
        op: type, as ONNX Runtime runs it: what it fused or moved to another layout has a name of its own.
        nodes: number of them that ran.
        ms: that they take in a run: the median over runs.
        share: of the time of all operators, 0..1.
    """

    graph: str
    op: str
    nodes: int
    ms: float
    share: float


def profile_bundle(
    bundle: Path, batch: np.ndarray, *, runs: int, threads: int | None = None, provider: str = "cpu"
) -> tuple[OperatorTime, ...]:
    """The types of operators in a bundle's graphs, the most expensive first.

    Args:
        bundle: folder.
        batch: (B, C, H, W) of its input dtype.
        runs: that count, after one that does not.
        threads: of the processor; None for all cores.
        provider: "cpu", "cuda" ..

    Raises:
        BundleError: the bundle cannot be used, or its engine writes no profile of ONNX Runtime.
        ConfigError: the provider is not available.
    """
    with tempfile.TemporaryDirectory(prefix="cellvision-profile-") as folder:
        prefix = Path(folder) / "profile"
        session = open_session(bundle, provider=provider, threads=threads, profile_prefix=prefix)
        for _ in range(runs + 1):
            session.run_batch(batch)
        return read_profile(session.end_profiling(), runs=runs)


def read_profile(path: Path, *, runs: int) -> tuple[OperatorTime, ...]:
    """The types of operators in a profile of ONNX Runtime, the most expensive first.

    Args:
        path: of the file; its events may name their graph in "args".
        runs: equal ones that count, after one more that does not.

    Raises:
        BundleError: the file is no such profile, or of another number of runs.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
        by_graph: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in events:
            by_graph[event.get("args", {}).get("graph", "")].append(event)
        found = [row for graph, own in by_graph.items() for row in _sum_by_type(graph, own, runs)]
        if not found:
            raise ValueError("no operators")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        need = f"a profile of ONNX Runtime of {runs + 1} runs"
        raise BundleError(explain(got=f"{path} cannot be read", need=need, hint="profile again")) from error
    total = sum(row[-1] for row in found)
    rows = [
        OperatorTime(graph=graph, op=op, nodes=nodes, ms=ms, share=ms / total if total else 0.0)
        for graph, op, nodes, ms in found
    ]
    return tuple(sorted(rows, key=lambda row: (-row.ms, row.graph, row.op)))


def _sum_by_type(graph: str, events: Sequence[dict[str, Any]], runs: int) -> list[tuple[str, str, int, float]]:
    """(graph, type, nodes, ms in a run) of one graph, which may have been called several times in each run."""
    ends = sorted(event["ts"] + event["dur"] for event in events if event["name"] == "model_run")
    calls, odd = divmod(len(ends), runs + 1)
    if odd:
        raise ValueError(f"{len(ends)} calls")
    bounds = ends[calls - 1 :: calls] if calls else []
    spent_us: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(runs + 1))
    names: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_NODE_END):
            op = event["args"]["op_name"]
            spent_us[op][int(np.searchsorted(bounds, event["ts"]))] += event["dur"]
            names[op].add(event["name"])
    # The median, because one run in which another process had the core would stand for all.
    return [(graph, op, len(names[op]), float(np.median(us[1:])) / 1e3) for op, us in spent_us.items()]
