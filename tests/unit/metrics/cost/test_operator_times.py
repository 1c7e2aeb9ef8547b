"""Profiles of ONNX Runtime, summed by type of operator."""

import json

import numpy as np
import pytest

from cellvision.errors import BundleError
from cellvision.metrics.cost.operator_times import profile_bundle, read_profile


def build_event(name, ts, dur, op=None, graph=None):
    args = ({"op_name": op} if op else {}) | ({"graph": graph} if graph else {})
    return {"cat": "Node" if op else "Session", "name": name, "ts": ts, "dur": dur, "args": args}


def write_profile(path, durations):
    """One run per row of durations: (first conv, second conv, add) in us."""
    events, now = [build_event("model_loading", 0, 5)], 10
    for row in durations:
        start = now
        for name, op, dur in zip(("c1", "c2", "a"), ("Conv", "Conv", "Add"), row, strict=True):
            events.append(build_event(f"{name}_kernel_time", now, dur, op))
            events.append(build_event(f"{name}_fence_before", now, 10_000, op))  # counted by no one
            now += dur
        events.append(build_event("model_run", start, now - start))
        now += 3
    path.write_text(json.dumps(events))
    return path


def test_types_are_summed_and_the_first_run_is_left_out(tmp_path):
    path = write_profile(tmp_path / "p.json", [(9000, 9000, 9000), (100, 300, 100), (100, 300, 100), (100, 9000, 100)])
    conv, add = read_profile(path, runs=3)
    assert (conv.op, conv.nodes, conv.ms, conv.share) == ("Conv", 2, 0.4, 0.8)  # the median: one run was disturbed
    assert (add.op, add.nodes, add.ms, add.share) == ("Add", 1, 0.1, 0.2)


def test_graphs_of_a_parted_bundle_are_told_apart(tmp_path):
    """Two runs of which each calls the second graph twice; the graphs' clocks begin at different times."""
    events = []
    for run in range(2):
        at = 1000 * run
        events += [
            build_event("n_kernel_time", at, 50, "Conv", "trunk"),
            build_event("model_run", at, 60, graph="trunk"),
        ]
        for call in range(2):
            at = 400 * run + 100 * call
            events += [build_event("n_kernel_time", at, 75, "Conv", "masks")]
            events += [build_event("model_run", at, 80, graph="masks")]
    (tmp_path / "p.json").write_text(json.dumps(events))
    masks, trunk = read_profile(tmp_path / "p.json", runs=1)
    assert (masks.graph, masks.ms, masks.share) == ("masks", 0.15, pytest.approx(0.75))
    assert (trunk.graph, trunk.ms, trunk.nodes) == ("trunk", 0.05, 1)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "model_run"}]', "null"])
def test_what_is_no_profile_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(BundleError, match=r"p\.json cannot be read; need a profile of ONNX Runtime of 3 runs"):
        read_profile(tmp_path / "p.json", runs=2)


def test_a_profile_of_other_runs_is_refused(tmp_path):
    path = write_profile(tmp_path / "p.json", [(1, 1, 1)] * 3)
    with pytest.raises(BundleError, match="cannot be read"):
        read_profile(path, runs=4)


def test_a_bundle_is_profiled(stain_bundle):
    found = profile_bundle(stain_bundle, np.zeros((2, 2, 64, 64), np.uint16), runs=3, threads=1)
    assert {"Conv", "Sigmoid", "Concat"} <= {row.op for row in found}
    assert sum(row.share for row in found) == pytest.approx(1.0)
    assert [row.ms for row in found] == sorted((row.ms for row in found), reverse=True)
