"""Predictors and sessions as a service uses them: many threads, worker processes, little memory."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from cellvision.errors import ConfigError
from cellvision.runtime.graphs.detection_session import DetectionSession
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.run_settings import ARENAS
from cellvision.runtime.session import open_session
from dot_net import draw_dots, write_dot_bundle
from stain_net import draw_cells


@pytest.fixture(scope="module", params=["maps", "whole", "parted"])
def bundle(request, tmp_path_factory, stain_bundle):
    if request.param == "maps":
        return stain_bundle
    return write_dot_bundle(tmp_path_factory.mktemp(request.param) / "b", parted=request.param == "parted")


def draw_images(manifest, count=6):
    """Fields with 1, 4, 9 .. cells, some on the seams of tiles of 64 px, each of another size."""
    draw = draw_cells if manifest.kind == "viability" else draw_dots
    return [
        draw((100 + 9 * n, 120 + 7 * n), [(12 + 25 * y, 14 + 25 * x) for y in range(n) for x in range(n)], 10, dead={0})
        for n in range(1, min(count, 4) + 1)
    ] * (count // 4 + 1)


def check_equal(one, other):
    assert len(one) == len(other) > 0
    np.testing.assert_array_equal(one.label_image, other.label_image)
    np.testing.assert_array_equal(one.class_id, other.class_id)
    np.testing.assert_array_equal(one.mean_intensity, other.mean_intensity)


def test_many_threads_get_what_one_gets(bundle):
    predictor = Predictor(bundle, tile_px=64, overlap_px=32, threads=1)
    images = draw_images(predictor.manifest, 16)
    expected = [predictor(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predictor, images * 3))
    for one, other in zip(found, expected * 3, strict=True):
        check_equal(one, other)


def test_threads_write_their_own_files(bundle, tmp_path):
    predictor = Predictor(bundle, tile_px=64, overlap_px=32, threads=1)
    (tmp_path / "in").mkdir()
    images = draw_images(predictor.manifest, 4)
    import tifffile

    for number, image in enumerate(images):
        tifffile.imwrite(tmp_path / "in" / f"{number}.tif", image, photometric="minisblack")
    paths = sorted((tmp_path / "in").iterdir())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(partial(predictor.predict_to_folder, out_dir=tmp_path / "out"), paths))
    assert [len(cells) for cells in found] == [len(predictor(image)) for image in images]
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(images)


def test_many_threads_open_and_run(bundle):
    """Opening measures memory; two at once must not wait for each other for ever, nor fail."""
    with ThreadPoolExecutor(4) as pool:
        predictors = list(pool.map(lambda _: Predictor(bundle, threads=1), range(4)))
    image = draw_images(predictors[0].manifest)[1]
    for predictor in predictors[1:]:
        check_equal(predictor(image), predictors[0](image))


def test_pickled_ones_are_the_same(bundle):
    predictor = Predictor(bundle, tile_px=64, overlap_px=24, threads=1, batch=2, arena="shrink", memory_mib=300)
    again = pickle.loads(pickle.dumps(predictor))
    assert again.session is not predictor.session
    assert again.session.settings == predictor.session.settings
    assert vars(again._planner) | {"_session": None} == vars(predictor._planner) | {"_session": None}
    image = draw_images(predictor.manifest)[3]
    check_equal(again(image), predictor(image))
    assert again(image).tiles > 1


@pytest.mark.slow
def test_workers_get_their_own(bundle, monkeypatch):
    predictor = Predictor(bundle, tile_px=64, overlap_px=32, threads=1)
    images = draw_images(predictor.manifest)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(predictor, images))
    for image, cells in zip(images, found, strict=True):
        check_equal(cells, predictor(image))


def test_a_pickled_session_opens_the_bundle_again(bundle, tmp_path, monkeypatch):
    session = open_session(bundle, threads=1, profile_prefix=tmp_path / "times")
    data = pickle.dumps(session)
    session.end_profiling()
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(data)
    assert type(again) is type(session)
    assert again.manifest == session.manifest
    assert again.settings.profile_prefix is None  # two processes must not write one file


@pytest.mark.parametrize("arena", ARENAS)
def test_what_becomes_of_memory_changes_no_cell(bundle, arena):
    image = draw_images(open_session(bundle).manifest)[2]
    check_equal(Predictor(bundle, arena=arena, threads=1)(image), Predictor(bundle, threads=1)(image))


def test_a_batch_of_tiles_changes_no_cell(bundle):
    image = draw_images(open_session(bundle).manifest)[3]
    one, two, all_ = (Predictor(bundle, tile_px=40, overlap_px=24, batch=n, threads=1)(image) for n in (1, 2, 100))
    assert one.tiles == two.tiles == all_.tiles > 4
    for other in (two, all_):
        assert len(other) == len(one)
        np.testing.assert_array_equal(other.label_image, one.label_image)


def test_tiles_of_one_size_go_through_the_graph_together(bundle, monkeypatch):
    predictor = Predictor(bundle, tile_px=40, overlap_px=24, batch=3, threads=1)
    seen = []
    run = predictor.session.run_batch
    monkeypatch.setattr(predictor.session, "run_batch", lambda images: seen.append(images.shape) or run(images))
    channels = len(predictor.manifest.channels)
    predictor(np.zeros((channels, 80, 240), np.uint16))
    # Windows begin at 0, 40 .. 160; all are 88 px wide but the last.
    assert seen == [(3, channels, 80, 88), (1, channels, 80, 88), (1, channels, 80, 80)]


def test_batch_is_a_number_of_tiles(bundle):
    with pytest.raises(ConfigError, match="batch=0; need a whole number from 1 to 500000000"):
        Predictor(bundle, batch=0)


def test_warm_up_runs_the_size_of_a_tile(bundle, monkeypatch):
    seen = []
    kind = type(open_session(bundle))
    original = kind.probe
    monkeypatch.setattr(kind, "probe", lambda self, edge_px: seen.append(edge_px) or original(self, edge_px))
    Predictor(bundle, tile_px=48, overlap_px=16, warm_up=True)
    assert seen[-1] == 80
    seen.clear()
    session = open_session(bundle, warm_up_px=40)
    assert seen == [40]
    assert isinstance(session, DetectionSession) == (session.manifest.kind == "instance")
