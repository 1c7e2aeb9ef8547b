import dataclasses

import numpy as np
import pytest

from cellvision.bundle import Detecting
from cellvision.runtime.graphs.detection_session import WholeSession
from cellvision.runtime.session import open_session
from cellvision.runtime.tiles import budget
from cellvision.runtime.tiles.budget import (
    NetCosts,
    compute_costs,
    compute_detection_costs,
    measure_net,
    remember_costs,
)
from cellvision.runtime.tiles.planner import JobPlanner
from cellvision.runtime.tiles.tiling import Costs
from dot_net import write_dot_bundle

MIB = 2**20


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(budget, "_measured", {})


class Memory:
    """A process whose memory grows by known amounts as a session probes."""

    def __init__(self, monkeypatch, *, fixed, per_px):
        self.held, self.edges, self.arenas, self.cells = 0, [], [], 64
        monkeypatch.setattr(budget.psutil, "Process", lambda: self)
        self._fixed, self._per_px = fixed, per_px

    def memory_info(self):
        return type("Info", (), {"rss": self.held})

    def probe(self, session, edge_px):
        self.edges.append(edge_px)
        self.arenas.append(session.settings.arena)
        self.held = self._fixed + self._per_px * edge_px**2

    def probe_cells(self, edge_px):
        self.edges.append(edge_px)
        self.held += self.cells * 3 * MIB
        return self.cells


@pytest.fixture
def memory(monkeypatch, request):
    found = Memory(monkeypatch, fixed=50 * MIB, per_px=2000)
    for kind in ("map_session.MapSession", "detection_session.WholeSession", "detection_session.PartedSession"):
        monkeypatch.setattr(f"cellvision.runtime.graphs.{kind}.probe", lambda self, edge_px: found.probe(self, edge_px))
    monkeypatch.setattr(WholeSession, "probe_cells", lambda self, edge_px: found.probe_cells(edge_px))
    return found


@pytest.mark.parametrize("arena", ["keep", "shrink", "none"])
@pytest.mark.parametrize("parted", [False, True])
def test_cells_cost_also_what_no_pixel_costs(tmp_path, memory, parted, arena):
    session = open_session(write_dot_bundle(tmp_path / "b", parted=parted), arena=arena)
    costs = measure_net(session)
    assert costs.per_px == pytest.approx(2000 * (256**2 - 32**2) / 256**2)
    assert costs.fixed == 50 * MIB + 2000 * 32**2
    assert memory.edges == [32, 256] if parted else [32, 256, 192]
    grown = 2000 * (256**2 - 32**2) + 64 * 3 * MIB
    assert costs.per_cell == (0 if parted else pytest.approx(1.25 * grown / 64))
    assert memory.arenas == ["keep", "keep"]  # what is given back after a run cannot be seen
    count = len(memory.edges)
    assert measure_net(session) == costs
    assert len(memory.edges) == count


@pytest.mark.parametrize("cells", [0, 15])
def test_nets_that_see_no_cell_in_a_disc_are_given_plenty(tmp_path, memory, cells):
    memory.cells = cells
    assert measure_net(open_session(write_dot_bundle(tmp_path / "b"))).per_cell == 1.25 * 1.5 * MIB


def test_each_cell_costs_only_as_many_as_there_can_be():
    net = NetCosts(per_px=0, fixed=0, per_cell=MIB)
    costs = compute_detection_costs(net, detecting=Detecting(max_cells=100), channels=1, dtype="uint8")
    none = dataclasses.replace(costs, per_cell=0)
    for edge, cells in ((48, 4), (240, 100), (2400, 100)):
        difference = [c.compute_total((edge, edge), tile_px=edge, overlap_px=0) for c in (costs, none)]
        assert difference[0] - difference[1] == cells * MIB


def test_maps_cost_what_their_pixels_cost(stain_bundle, memory):
    costs = measure_net(open_session(stain_bundle))
    assert costs == NetCosts(per_px=pytest.approx(2000 * (256**2 - 32**2) / 256**2), fixed=0)


def test_what_another_process_measured_is_not_measured_again(stain_bundle, memory):
    session, told = open_session(stain_bundle), NetCosts(per_px=7, fixed=0)
    remember_costs(session, told)
    assert measure_net(session) == told
    assert memory.edges == []


def test_no_less_than_what_goes_in_and_comes_out(tmp_path, stain_bundle, memory):
    memory._fixed = memory._per_px = 0
    assert measure_net(open_session(stain_bundle)).per_px == 16
    assert measure_net(open_session(write_dot_bundle(tmp_path / "b"))).per_px == 3 * (2 + 4)


def test_masks_and_batches_are_counted():
    net = NetCosts(per_px=1000, fixed=10 * MIB)
    options = {"channels": 2, "dtype": "uint16"}
    one = compute_detection_costs(net, detecting=Detecting(max_cells=1000), **options)
    more = compute_detection_costs(net, detecting=Detecting(max_cells=3000), **options)
    many = compute_detection_costs(net, detecting=Detecting(max_cells=1000), batch=4, **options)
    assert more.fixed - one.fixed >= 2000 * 28 * 28 * 4
    assert many.fixed - one.fixed >= 3 * 10 * MIB
    assert (one.windows, many.windows) == (1, 4)
    assert one.per_window_px > 1000
    picture = compute_detection_costs(net, detecting=Detecting(), overlay_shape=(3000, 3000), whole_bytes=7, **options)
    assert picture.fixed - one.fixed >= 7 + 3000 * 3000 * 3


def test_windows_at_once_are_no_more_than_there_are():
    costs = Costs(per_window_px=1, per_band_px=0, fixed=0, windows=4)
    assert costs.compute_total((100, 1000), tile_px=100, overlap_px=0) == 4 * 100 * 100
    assert costs.compute_total((100, 150), tile_px=100, overlap_px=0) == 2 * 100 * 100
    assert compute_costs(1, channels=1, dtype="uint8", batch=3).windows == 3


def test_tiles_shrink_until_cells_fit_the_memory(tmp_path):
    session = open_session(write_dot_bundle(tmp_path / "b", tile_px=512, overlap_px=32))
    found = {}
    for memory_mib in (2000, 1000, 400):
        planner = JobPlanner(session, NetCosts(per_px=2500, fixed=100 * MIB), memory_mib=memory_mib)
        job = planner.plan(
            lambda top, bottom: np.zeros((3, bottom - top, 4000), np.uint16), name="a", shape=(3, 4000, 4000),
            dtype="uint16", channel_names=None, intensity_scale=None, pixel_size_um=None, progress=None,
        )  # fmt: skip
        found[memory_mib] = job.tile_px
    assert found == {2000: 512, 1000: 256, 400: 128}
