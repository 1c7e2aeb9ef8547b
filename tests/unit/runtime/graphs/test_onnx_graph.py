import json

import numpy as np
import onnxruntime
import pytest

from cellvision.errors import BundleError, ConfigError
from cellvision.runtime.graphs.onnx_graph import open_onnx_graph
from cellvision.runtime.graphs.providers import choose_providers, find_device, list_providers
from cellvision.runtime.run_settings import RunSettings
from cellvision.runtime.session import open_session
from dot_net import build_masks, build_trunk, draw_dots, write_dot_bundle

INSTALLED = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def asked(monkeypatch):
    """What ONNX Runtime is asked for, on a machine that seems to have every provider."""
    seen = []
    start = onnxruntime.InferenceSession

    class Seeming(start):
        def __init__(self, graph, options, *, providers, **named):
            seen.append((providers, options, named))
            super().__init__(graph, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [name for name, _ in seen[-1][0]] + ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: INSTALLED)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Seeming)
    return seen


def test_providers_and_their_options_are_what_was_asked_for(stain_bundle, asked):
    assert list_providers() == ["cpu", "cuda", "openvino", "tensorrt"]
    for provider, options, expected in (
        ("cuda", {"device_id": "1"}, [("CUDAExecutionProvider", {"device_id": "1"})]),
        ("openvino", {"device_type": "CPU"}, [("OpenVINOExecutionProvider", {"device_type": "CPU"})]),
        (
            "tensorrt",
            {"device_id": "1", "trt_fp16_enable": "1"},
            [
                ("TensorrtExecutionProvider", {"device_id": "1", "trt_fp16_enable": "1"}),
                ("CUDAExecutionProvider", {"device_id": "1"}),
            ],
        ),
        ("cpu", {}, [("CPUExecutionProvider", {})]),
    ):
        session = open_session(stain_bundle, provider=provider, provider_options=options)
        assert asked[-1][0] == expected
        assert asked[-1][2] == {"enable_fallback": 0}
        assert session.provider == provider


def test_results_stay_on_the_device_that_made_them():
    places = {
        provider: find_device(RunSettings(provider=provider, provider_options=options))
        for provider, options in (("cpu", {}), ("openvino", {}), ("cuda", {}), ("tensorrt", {"device_id": "2"}))
    }
    assert places == {"cpu": ("cpu", 0), "openvino": ("cpu", 0), "cuda": ("cuda", 0), "tensorrt": ("cuda", 2)}


def test_a_missing_provider_is_an_error(stain_bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for provider in ("tensorrt", "openvino", "cuda"):
        with pytest.raises(
            ConfigError, match=rf"^provider={provider} with an .* only .*cpu; need an .* has {provider}; "
        ):
            open_session(stain_bundle, provider=provider)
        with pytest.raises(ConfigError, match=r"then install onnxruntime-[a-z]+; or provider=cpu"):
            choose_providers(RunSettings(provider=provider))


def test_a_provider_that_refuses_names_its_options(stain_bundle, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no such option\nsecond line")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: INSTALLED)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(
        ConfigError, match=r"does not load with provider=cuda, colour=red \(no such option\); .*try: provider=cpu"
    ):
        open_session(stain_bundle, provider="cuda", provider_options={"colour": "red"})


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match=r"provider_options device_id with provider=cpu; need none"):
        RunSettings(provider_options={"device_id": "0"})
    with pytest.raises(ConfigError, match="unknown arena 'small'; need one of: keep, none, shrink"):
        RunSettings(arena="small")
    with pytest.raises(ConfigError, match="threads=0; need a whole number from 1 to"):
        RunSettings(threads=0)


@pytest.mark.parametrize(("arena", "is_kept"), [("keep", True), ("shrink", True), ("none", False)])
def test_what_onnx_runtime_is_told_of_memory_and_threads(stain_bundle, asked, arena, is_kept):
    open_session(stain_bundle, arena=arena, threads=3)
    options = asked[-1][1]
    assert options.enable_cpu_mem_arena is is_kept
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_what_is_held_goes_from_graph_to_graph_uncopied(tmp_path):
    folder = write_dot_bundle(tmp_path / "b", build_trunk(), build_masks(), parted=True)
    trunk, masks = (open_onnx_graph(folder / f"{role}.onnx", RunSettings()) for role in ("trunk", "masks"))
    image = draw_dots((40, 50), [(20, 20)], 8)
    plain = trunk.run({"image": image[None]}, ["map_0", "map_1", "scores"])
    held = trunk.run({"image": image[None]}, ["map_0", "map_1", "scores"], held=("map_0", "map_1"))
    assert isinstance(held["map_0"], onnxruntime.OrtValue)
    np.testing.assert_array_equal(held["scores"], plain["scores"])
    np.testing.assert_array_equal(held["map_1"].numpy(), plain["map_1"])
    region = {
        "boxes": np.array([[12.5, 12.5, 28.5, 28.5]], np.float32),
        "images": np.array([0]),
        "classes": np.array([1]),
        "image_area": np.array([2000], np.float32),
    }
    fed = [masks.run(region | {name: maps[name] for name in ("map_0", "map_1")}, ["masks"]) for maps in (plain, held)]
    assert fed[0]["masks"].sum() > 0
    np.testing.assert_array_equal(fed[0]["masks"], fed[1]["masks"])


def test_results_outlive_the_graph_and_the_next_run(tmp_path):
    session = open_session(write_dot_bundle(tmp_path / "b", parted=True), arena="shrink")
    first = session.run(draw_dots((40, 50), [(20, 20)], 8))
    boxes = first.boxes.copy()
    session.run(draw_dots((40, 50), [(9, 31)], 4))
    del session
    np.testing.assert_array_equal(first.boxes, boxes)


@pytest.mark.parametrize("form", ["maps", "whole", "parted"])
def test_profile_is_one_file_with_all_operators(tmp_path, stain_bundle, form):
    folder = stain_bundle if form == "maps" else write_dot_bundle(tmp_path / "b", parted=form == "parted")
    (tmp_path / "out").mkdir()
    session = open_session(folder, profile_prefix=tmp_path / "out" / "times")
    session.probe(40)
    path = session.end_profiling()
    assert [path] == list((tmp_path / "out").iterdir())
    assert path.name.startswith("times")
    events = json.loads(path.read_text(encoding="utf-8"))
    operators = {event["args"]["op_name"] for event in events if event.get("cat") == "Node"}
    assert {"Concat", "Cast"} <= operators
    graphs = {event["args"].get("graph") for event in events if event.get("cat") == "Node"}
    assert graphs == ({"trunk", "masks"} if form == "parted" else {None})


def test_no_profile_where_none_was_asked_for(stain_bundle):
    with pytest.raises(BundleError, match=r"no profile; need a session that takes one; try: open_session"):
        open_session(stain_bundle).end_profiling()
