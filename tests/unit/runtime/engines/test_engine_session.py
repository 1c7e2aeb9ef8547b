"""Our side of running an engine, on a made-up GPU: its memory is this process's, and its engine doubles numbers.

No behaviour of TensorRT is tested here, for that needs a GPU; the test marked so runs where there is one.
"""

import ctypes
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cellvision.bundle import compute_sha256
from cellvision.errors import BundleError, ConfigError, ShapeError
from cellvision.runtime.engines import library as engine_library
from cellvision.runtime.engines.library import Gpu
from cellvision.runtime.engines.session import open_engine
from cellvision.runtime.engines.sidecar import EngineSidecar, EngineTensor, write_sidecar

GPU = Gpu(name="Made-up 1", compute_capability="9.0")


class Cuda:
    """The functions of the CUDA runtime that are used, with the arguments that they take."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, *, gpus=1, room=1 << 30):
        self.gpus, self.room = gpus, room
        self.memory, self.streams, self.current = {}, set(), threading.local()
        self.used = []

    def cudaGetDeviceCount(self):
        return 0, self.gpus

    def cudaGetDeviceProperties(self, device):
        return 0, SimpleNamespace(name=b"Made-up 1", major=9, minor=0)

    def cudaSetDevice(self, device):
        self.current.device = device
        return (0,)

    def cudaStreamCreateWithFlags(self, flags):
        self.streams.add(stream := 100 + len(self.streams) + len(self.used))
        return 0, stream

    def cudaStreamSynchronize(self, stream):
        return (0 if stream in self.streams else 400,)

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return (0,)

    def cudaMalloc(self, size):
        if sum(map(len, self.memory.values())) + size > self.room:
            return 2, None
        piece = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(piece)] = piece
        return 0, ctypes.addressof(piece)

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        inside = self.memory[to if kind == 1 else source]
        if size > len(inside) or stream not in self.streams:
            return (1,)
        ctypes.memmove(to, source, size)
        return (0,)


class Context:
    active_optimization_profile = 0

    def __init__(self, cuda):
        self.cuda, self.shapes, self.addresses = cuda, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name in ("image", "maps")

    def get_tensor_shape(self, name):
        return self.shapes["image"]

    def infer_shapes(self):
        return [] if "image" in self.shapes else ["image"]

    def execute_async_v3(self, stream):
        size = 4 * int(np.prod(self.shapes["image"]))
        source = np.frombuffer(self.cuda.memory[self.addresses["image"]], np.float32, size // 4)
        target = np.frombuffer(self.cuda.memory[self.addresses["maps"]], np.float32, size // 4)
        assert isinstance(stream, int)
        self.cuda.used.append((self.cuda.current.device, stream))
        time.sleep(0.02)
        target[:] = 2 * source
        return True


class Engine:
    num_io_tensors = 2

    def __init__(self, cuda):
        self.cuda = cuda

    def get_tensor_name(self, number):
        return ("image", "maps")[number]

    def get_tensor_dtype(self, name):
        return np.float32

    def create_execution_context(self):
        return Context(self.cuda)


class Logger:
    ERROR = 1

    def __init__(self, severity):
        self.severity = severity


@pytest.fixture
def cuda(monkeypatch):
    return put(monkeypatch, Cuda())


def put(monkeypatch, cuda, **other):
    class Runtime:
        def __init__(self, logger):
            assert logger.severity == Logger.ERROR

        def deserialize_cuda_engine(self, content):
            return Engine(cuda) if content == b"engine" else None

    parts = {"Runtime": Runtime, "Logger": Logger, "nptype": lambda kind: kind, "__version__": "11.4.0.106"}
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(**parts | other))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return cuda


def write(folder, content=b"engine", **other):
    path = folder / "graph.engine"
    path.write_bytes(content)
    free = ("batch", 1, "height", "width")
    facts = {
        "library": "tensorrt", "library_version": "11.4.0.106", "gpu": GPU, "engine_sha256": compute_sha256(path),
        "onnx_sha256": "0" * 64, "precision": "fp32", "layers": {},
        "profile": {"image": ((1, 1, 2, 2), (1, 1, 8, 8), (2, 1, 16, 16))},
        "inputs": (EngineTensor(name="image", element="float", shape=free),),
        "outputs": (EngineTensor(name="maps", element="float", shape=free),),
    }  # fmt: skip
    write_sidecar(EngineSidecar(**facts | other), path)
    return path


def test_arrays_go_in_and_come_out_at_any_size_of_the_profile(cuda, tmp_path):
    rng = np.random.default_rng(0)
    with open_engine(write(tmp_path)) as session:
        assert [port.name for port in (*session.inputs, *session.outputs)] == ["image", "maps"]
        for shape in [(1, 1, 2, 2), (2, 1, 16, 16), (1, 1, 5, 9)]:
            image = rng.normal(size=shape).astype(np.float32)
            np.testing.assert_array_equal(session.run({"image": image}, ["maps"])["maps"], 2 * image)
        turned = np.asfortranarray(rng.normal(size=(1, 1, 8, 6)).astype(np.float32))
        np.testing.assert_array_equal(session.run({"image": turned})["maps"], 2 * turned)
        assert sum(map(len, cuda.memory.values())) == 2 * 4 * 2 * 16 * 16
    assert not cuda.memory
    assert not cuda.streams


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            np.zeros((1, 1, 17, 16), np.float32),
            r"'image' is float32 \[1, 1, 17, 16\]; need float32 \[1, 1, 2, 2\] to \[",
        ),
        (np.zeros((3, 1, 8, 8), np.float32), r"\[3, 1, 8, 8\]"),
        (np.zeros((1, 1, 1, 8), np.float32), r"\[1, 1, 1, 8\].*; try: another tile_px"),
        (np.zeros((1, 8, 8), np.float32), r"\[1, 8, 8\]"),
        (np.zeros((1, 1, 8, 8), np.float64), r"is float64 \[1, 1, 8, 8\]; need float32"),
        (None, r"is None None; need float32"),
    ],
)
def test_what_the_engine_was_not_built_for_is_refused_before_it_runs(cuda, tmp_path, image, said):
    with open_engine(write(tmp_path)) as session:
        with pytest.raises(ShapeError, match=said):
            session.run({} if image is None else {"image": image})
        assert session.run({"image": np.ones((1, 1, 2, 2), np.float32)})["maps"].sum() == 8  # the lane is free again
    assert len(cuda.used) == 1


def test_threads_share_the_lanes_of_several_gpus(monkeypatch, tmp_path):
    cuda = put(monkeypatch, Cuda(gpus=2))
    results = {}
    with open_engine(write(tmp_path), devices=(0, 1), streams=2) as session:

        def work(number):
            image = np.full((1, 1, 8, 8), number, np.float32)
            results[number] = session.run({"image": image})["maps"]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(cuda.memory) == 2 * 2 * 2
    assert sorted(results) == list(range(24))
    assert all((results[number] == 2 * number).all() for number in results)
    assert {device for device, _ in cuda.used} == {0, 1}
    assert len(set(cuda.used)) == 4
    assert not cuda.memory


def test_too_little_memory_gives_back_what_was_taken(monkeypatch, tmp_path):
    cuda = put(monkeypatch, Cuda(room=5000))
    with pytest.raises(ConfigError, match=r"cudaMalloc failed with CUDA error 2 .*; need more free GPU memory"):
        open_engine(write(tmp_path), streams=2)
    assert not cuda.memory
    assert not cuda.streams


@pytest.mark.parametrize(
    ("broken", "value", "said"),
    [
        ("set_input_shape", False, r"the engine refused the shape \(2, 1, 16, 16\) of 'image'"),
        ("set_tensor_address", False, r"the engine has no input or output 'image'"),
        ("get_tensor_shape", (2, -1), r"the engine has 'maps' of a size known only after a run"),
    ],
)
def test_an_engine_that_does_not_start(cuda, tmp_path, monkeypatch, broken, value, said):
    monkeypatch.setattr(Context, broken, lambda *_: value)
    with pytest.raises(BundleError, match=said):
        open_engine(write(tmp_path))
    assert not cuda.memory


@pytest.mark.parametrize(
    ("broken", "value", "said"),
    [
        ("set_input_shape", False, r"the engine refused the shape \(1, 1, 8, 8\) of 'image'"),
        ("infer_shapes", ["image"], "the engine knows no shape of image"),
        ("execute_async_v3", False, "the engine could not be run; need an engine that runs"),
    ],
)
def test_an_engine_that_fails(cuda, tmp_path, monkeypatch, broken, value, said):
    with open_engine(write(tmp_path)) as session:
        monkeypatch.setattr(Context, broken, lambda *_: value)
        with pytest.raises(BundleError, match=said):
            session.run({"image": np.zeros((1, 1, 8, 8), np.float32)})


def test_no_room_for_a_context(cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "create_execution_context", lambda self: None)
    with pytest.raises(ConfigError, match="an engine that finds no room on GPU 0; need more free GPU memory"):
        open_engine(write(tmp_path))
    assert not cuda.streams


def test_a_context_of_another_profile_is_set_to_the_first(cuda, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(Context, "active_optimization_profile", -1)
    choose = lambda self, number, stream: chosen.append((number, stream))  # noqa: E731
    monkeypatch.setattr(Context, "set_optimization_profile_async", choose, raising=False)
    with open_engine(write(tmp_path), streams=2):
        assert [number for number, _ in chosen] == [0, 0]


def test_an_engine_of_other_inputs_or_bytes_is_refused(cuda, tmp_path, monkeypatch):
    other = (EngineTensor(name="image", element="uint8", shape=("batch", 1, "height", "width")),)
    with pytest.raises(BundleError, match=r"has image float32, maps float32, and its sidecar tells of image uint8"):
        open_engine(write(tmp_path, inputs=other))
    with pytest.raises(BundleError, match=r"graph\.engine does not load; .*; need an engine of this machine"):
        open_engine(write(tmp_path, b"rubbish"))


def test_an_engine_of_another_place_is_refused(cuda, tmp_path):
    with pytest.raises(BundleError, match=r"its GPU is Made-up 1 \(compute capability 9\.0\); need A100"):
        open_engine(write(tmp_path, gpu=Gpu(name="A100", compute_capability="8.0")))
    with pytest.raises(BundleError, match=r"its tensorrt version is 11\.4\.0\.106; need 11\.2"):
        open_engine(write(tmp_path, library_version="11.2"))
    with pytest.raises(ConfigError, match=r"no GPU of device=3"):
        open_engine(write(tmp_path), devices=(0, 3))


def test_settings_and_profiling_are_explained(cuda, tmp_path):
    for wrong in ({"streams": 0}, {"devices": ()}):
        with pytest.raises(ConfigError, match=r"streams=.* on devices=.*; need at least one of each"):
            open_engine(write(tmp_path), **wrong)
    with open_engine(write(tmp_path)) as session, pytest.raises(ConfigError, match=r"profiling of .*graph\.engine"):
        session.end_profiling()


@pytest.mark.gpu
def test_an_engine_says_what_its_graph_says(tmp_path):
    """On a real GPU: TensorRT, or TensorRT-RTX, beside ONNX Runtime."""
    try:
        gpus = engine_library.list_gpus()
    except engine_library.MissingExtraError as error:
        pytest.skip(str(error))
    if not gpus:
        pytest.skip("needs an NVIDIA GPU and its driver")
    onnx = pytest.importorskip("onnx")
    backend = next((name for name in ("tensorrt", "tensorrt_rtx") if has(name)), None)
    if backend is None:
        pytest.skip("needs tensorrt or tensorrt-rtx")
    import onnxruntime
    from onnx import helper, numpy_helper

    from cellvision.export.tensorrt.builder import build_engine
    from cellvision.export.tensorrt.options import TensorrtOptions

    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    free = ["batch", 2, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["maps"], pads=[1, 1, 1, 1])],
        "g",
        [value("image", 1, free)],
        [value("maps", 1, ["batch", 3, "height", "width"])],
        [numpy_helper.from_array(rng.normal(size=(3, 2, 3, 3)).astype(np.float32), "weight")],
    )
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    build_engine(path, tmp_path / "graph.engine", TensorrtOptions(backend=backend))
    reference = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with open_engine(tmp_path / "graph.engine", devices=range(len(gpus)), streams=2) as session:
        for shape in [(1, 2, 64, 64), (8, 2, 200, 300)]:
            image = rng.normal(size=shape).astype(np.float32)
            found = session.run({"image": image})["maps"]
            np.testing.assert_allclose(found, reference.run(None, {"image": image})[0], atol=1e-4)


def has(backend):
    try:
        engine_library.import_backend(backend)
    except (ConfigError, engine_library.MissingExtraError):
        return False
    return True
