import dataclasses
import math

import numpy as np
import pytest

from cellvision.bundle import Detecting
from cellvision.runtime.graphs.detection_session import PartedSession, WholeSession
from cellvision.runtime.graphs.map_session import MapSession
from cellvision.runtime.session import open_session
from cellvision.runtime.tiles import budget
from cellvision.runtime.tiles.budget import NetCosts, compute_costs, measure_net, remember_costs
from cellvision.runtime.tiles.planner import JobPlanner
from cellvision.runtime.tiles.tiling import Costs
from dot_net import write_dot_bundle

MIB = 2**20
MASKS = 50 * MIB


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(budget, "_measured", {})


class Memory:
    """A process whose memory grows by known amounts as a session probes: maps, and in their place then masks."""

    def __init__(self, monkeypatch, *, per_px):
        self.held, self.edges, self.arenas, self.cells = 300 * MIB, [], [], 64
        monkeypatch.setattr(budget.psutil, "Process", lambda: self)
        self.per_px, self._opened = per_px, self.held

    def memory_info(self):
        return type("Info", (), {"rss": self.held})

    def probe(self, session, edge_px):
        self.edges.append(edge_px)
        self.arenas.append(session.settings.arena)
        masks = MASKS if isinstance(session, PartedSession) else 0
        self.held = max(self.held, self._opened + masks + self.per_px * edge_px**2)

    def probe_cells(self, edge_px):
        self.edges.append(edge_px)
        self.held = max(self.held, self._opened + self.cells * 3 * MIB)
        return self.cells


@pytest.fixture
def memory(monkeypatch):
    found = Memory(monkeypatch, per_px=200)
    for kind in (MapSession, WholeSession, PartedSession):
        monkeypatch.setattr(kind, "probe", lambda self, edge_px: found.probe(self, edge_px))
    monkeypatch.setattr(WholeSession, "probe_cells", lambda self, edge_px: found.probe_cells(edge_px))
    return found


@pytest.mark.parametrize("arena", ["keep", "shrink", "none"])
def test_a_whole_graph_costs_the_masks_of_all_cells(tmp_path, memory, arena):
    session = open_session(write_dot_bundle(tmp_path / "b"), arena=arena)
    costs = measure_net(session)
    assert costs.per_px == pytest.approx(1.3 * 200)
    assert costs.fixed == 0
    assert costs.per_cell == pytest.approx(1.1 * (64 * 3 * MIB - 1.3 * 200 * 192**2) / 64)
    assert memory.edges == [256, 192]
    assert memory.arenas == ["keep"]  # what is given back after a run cannot be seen
    assert measure_net(session) == costs
    assert memory.edges == [256, 192]


def test_a_parted_bundle_costs_a_fixed_number_of_masks(tmp_path, memory):
    costs = measure_net(open_session(write_dot_bundle(tmp_path / "b", parted=True)))
    assert memory.edges == [32, 256]
    assert costs.fixed == MASKS + 200 * 32**2
    assert costs.per_px == pytest.approx(1.3 * 200 * (256**2 - 32**2) / 256**2)
    assert costs.per_cell == 0


@pytest.mark.parametrize("cells", [0, 15])
def test_nets_that_see_no_cell_in_a_disc_are_given_plenty(tmp_path, memory, cells):
    memory.cells = cells
    assert measure_net(open_session(write_dot_bundle(tmp_path / "b"))).per_cell == pytest.approx(1.1 * 1.5 * MIB)


def test_each_cell_costs_only_as_many_as_there_can_be():
    net = NetCosts(per_px=0, per_cell=MIB)
    costs = compute_costs(net, detecting=Detecting(max_cells=100), channels=1, dtype="uint8")
    none = dataclasses.replace(costs, per_cell=0)
    for edge, cells in ((64, 4), (256, 64), (320, 100), (2400, 100)):
        difference = [c.compute_total((edge, edge), tile_px=edge, overlap_px=0) for c in (costs, none)]
        assert difference[0] - difference[1] == cells * MIB


def test_maps_cost_what_their_pixels_cost(stain_bundle, memory):
    assert measure_net(open_session(stain_bundle)) == NetCosts(per_px=pytest.approx(1.3 * 200))


def test_what_another_process_measured_is_not_measured_again(stain_bundle, memory):
    session, told = open_session(stain_bundle), NetCosts(per_px=7)
    remember_costs(session, told)
    assert measure_net(session) == told
    assert memory.edges == []


def test_no_less_than_what_goes_in_and_comes_out(tmp_path, stain_bundle, memory):
    memory.per_px = 0
    assert measure_net(open_session(stain_bundle)).per_px == 16
    assert measure_net(open_session(write_dot_bundle(tmp_path / "b"))).per_px == 3 * (2 + 4)


def test_masks_and_batches_are_counted():
    net = NetCosts(per_px=1000, fixed=10 * MIB)

    def compute(max_cells=1000, **options):
        return compute_costs(net, detecting=Detecting(max_cells=max_cells), channels=2, dtype="uint16", **options)

    one, many = compute(), compute(batch=4)
    assert compute(3000).fixed - one.fixed >= 2000 * 28 * 28 * 4
    assert many.fixed - one.fixed >= 3 * 10 * MIB
    assert (one.windows, many.windows) == (1, 4)
    assert one.per_window_px > 1000
    assert compute(overlay_shape=(3000, 3000), whole_bytes=7).fixed - one.fixed >= 7 + 3000 * 3000 * 3


def test_windows_at_once_are_no_more_than_there_are():
    costs = Costs(per_window_px=1, per_band_px=0, fixed=0, windows=4)
    assert costs.compute_total((100, 1000), tile_px=100, overlap_px=0) == 4 * 100 * 100
    assert costs.compute_total((100, 150), tile_px=100, overlap_px=0) == 2 * 100 * 100
    assert compute_costs(NetCosts(per_px=1), channels=1, dtype="uint8", batch=3).windows == 3


def plan(planner, edge=4000):
    return planner.plan(
        lambda top, bottom: np.zeros((3, bottom - top, edge), np.uint16), name="a", shape=(3, edge, edge),
        dtype="uint16", channel_names=None, intensity_scale=None, pixel_size_um=None, progress=None,
    )  # fmt: skip


def test_tiles_shrink_until_cells_fit_the_memory_and_it_is_said_once(tmp_path):
    session = open_session(write_dot_bundle(tmp_path / "b", tile_px=512, overlap_px=32))
    net = NetCosts(per_px=2500, fixed=100 * MIB)
    costs = compute_costs(net, detecting=session.detecting, channels=3, dtype="uint16")

    def count_mib(tile_px):
        return math.ceil(costs.compute_total((4000, 4000), tile_px=tile_px, overlap_px=32) / MIB)

    enough = count_mib(512)
    roomy = plan(JobPlanner(session, net, memory_mib=enough))
    assert (roomy.tile_px, roomy.tiles, roomy.notes) == (512, 64, ())
    planner = JobPlanner(session, net, memory_mib=enough // 2)
    tight = plan(planner)
    assert count_mib(tight.tile_px) <= enough // 2 < count_mib(tight.tile_px + session.manifest.stride)
    assert tight.notes == (
        f"{tight.tiles} tiles of {tight.tile_px} px keep within memory_mib={enough // 2}; "
        f"memory_mib={enough} allows 64 of 512 px, which is faster",
    )
    assert plan(planner).notes == ()
    assert plan(planner, 100).notes == ()
