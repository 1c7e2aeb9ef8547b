import json

import pytest

from cellvision.bundle import compute_sha256
from cellvision.errors import BundleError
from cellvision.runtime.engines.library import Gpu
from cellvision.runtime.engines.sidecar import (
    EngineSidecar,
    EngineTensor,
    check_engine_sidecar,
    find_sidecar,
    load_sidecar,
    write_sidecar,
)

H100 = Gpu(name="NVIDIA H100", compute_capability="9.0")


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "graph.engine"
    path.write_bytes(b"engine")
    write_sidecar(build(path), path)
    return path


def build(path, **other):
    facts = {
        "library": "tensorrt", "library_version": "11.4.0.106", "gpu": H100, "engine_sha256": compute_sha256(path),
        "onnx_sha256": "0" * 64, "precision": "fp16", "layers": {"fp16": 3, "fp32": 1},
        "profile": {"image": ((1, 2, 64, 64), (1, 2, 512, 512), (8, 2, 1024, 1024))},
        "inputs": (EngineTensor(name="image", element="float", shape=("batch", 2, "height", "width")),),
        "outputs": (EngineTensor(name="maps", element="float", shape=("batch", 3, "height", "width")),),
    }  # fmt: skip
    return EngineSidecar(**facts | other)


def test_what_was_written_is_read(engine):
    assert load_sidecar(engine) == build(engine)
    assert find_sidecar(engine).name == "graph.engine.json"


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({}, {"library_version": "11.3.0.1"}, r"its tensorrt version is 11\.3\.0\.1; need 11\.4\.0\.106, with which"),
        ({}, {"gpu": Gpu(name="A100", compute_capability="8.0")}, r"its GPU is A100 .*; need NVIDIA H100 \(compute"),
        ({}, {"gpu": None}, r"its GPU is none; need NVIDIA H100"),
        ({"engine_sha256": "1" * 64}, {}, r"its engine file is [0-9a-f]{60}; need 1{60}"),
    ],
)
def test_a_mismatch_is_refused_with_both_sides(engine, there, here, said):
    write_sidecar(build(engine, **there), engine)
    with pytest.raises(BundleError, match=said):
        check_engine_sidecar(engine, **{"library_version": "11.4.0.106", "gpu": H100} | here)


def test_what_fits_is_let_through(engine, tmp_path):
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")
    write_sidecar(build(engine, onnx_sha256=compute_sha256(graph)), engine)
    found = check_engine_sidecar(engine, library_version="11.4.0.106", gpu=H100, onnx=graph)
    assert found.gpu == H100


def test_no_sidecar_and_no_engine(engine):
    (sidecar := find_sidecar(engine)).rename(engine.with_name("kept"))
    with pytest.raises(BundleError, match=r"graph\.engine\.json is not there; need the file that was written with"):
        load_sidecar(engine)
    engine.with_name("kept").rename(sidecar)
    engine.unlink()
    with pytest.raises(BundleError, match="its engine file is no file"):
        check_engine_sidecar(engine, library_version="11.4.0.106", gpu=H100)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"format_version": 2}, {"format_version": None}, {"extra": 1}, {"library": "tvm"},
        {"library": 5}, {"precision": "fp4"}, {"profile": []}, {"profile": {"image": [[1], [2]]}},
        {"profile": {"other": [[1], [1], [2]]}}, {"layers": {"fp16": "many"}}, {"inputs": [{"name": "image"}]},
        {"inputs": None}, {"gpu": "H100"}, {"gpu": {"name": "H100"}},
        {"outputs": [{"name": "maps", "element": "complex", "shape": [1]}]},
    ],
)  # fmt: skip
def test_a_sidecar_that_is_none_is_refused(engine, change):
    record = json.loads(find_sidecar(engine).read_text())
    find_sidecar(engine).write_text(json.dumps(record | change))
    with pytest.raises(
        BundleError, match=r"is not a sidecar of this release \(.+\); need what export wrote; try: build"
    ):
        load_sidecar(engine)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "[" * 100_000])
def test_hostile_text_is_refused(engine, text):
    find_sidecar(engine).write_text(text)
    with pytest.raises(BundleError, match=r"engine\.json"):
        load_sidecar(engine)
