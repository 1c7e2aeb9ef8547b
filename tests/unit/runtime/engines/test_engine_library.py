import sys
from types import SimpleNamespace

import pytest

from cellvision.errors import ConfigError, MissingExtraError
from cellvision.runtime.engines import library as engine_library
from cellvision.runtime.engines.library import Gpu, call, find_gpu, import_backend, import_cuda, list_gpus


def put(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, name, module)


def test_a_missing_package_names_its_extra(monkeypatch):
    for backend, said in [
        ("tensorrt", r'tensorrt is not installed.*"cellvision\[tensorrt\]"'),
        ("tensorrt_rtx", r'tensorrt-rtx is not installed.*"cellvision\[trt\]"'),
    ]:
        monkeypatch.setattr(engine_library, "import_module", fail_with(ModuleNotFoundError(backend)))
        with pytest.raises(MissingExtraError, match=said):
            import_backend(backend)
    with pytest.raises(MissingExtraError, match=r'cuda-bindings is not installed.*"cellvision\[trt\]"'):
        import_cuda()


def fail_with(error):
    def fail(name):
        raise error

    return fail


def test_bindings_without_their_libraries(monkeypatch):
    monkeypatch.setattr(engine_library, "import_module", fail_with(ImportError("libnvonnxparser.so.11")))
    said = r"tensorrt is installed but does not load \(libnvonnxparser\.so\.11\); need its libraries"
    with pytest.raises(ConfigError, match=said):
        import_backend("tensorrt")


def test_another_backend_lists_what_there_is():
    with pytest.raises(ConfigError, match="unknown backend 'trt'; need one of: tensorrt, tensorrt_rtx"):
        import_backend("trt")


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        ("8.6.1", True), ("10.11.0.33", True), ("10.9", True), ("10.12.0.36", False), ("10.16.1.11", False),
        ("11.4.0.106", False), ("12", False), ("rubbish", True),
    ],
)  # fmt: skip
def test_tensorrt_before_10_12_is_refused(version, is_refused, monkeypatch):
    module = SimpleNamespace(__version__=version)
    put(monkeypatch, "tensorrt", module)
    if not is_refused:
        assert import_backend("tensorrt") is module
        return
    with pytest.raises(ConfigError, match=rf"tensorrt {version}; need 10\.12 or newer; try: pip install -U tensorrt"):
        import_backend("tensorrt")


class Status(int):
    name = "cudaErrorMemoryAllocation"


def test_a_cuda_function_gives_its_value_or_says_what_failed():
    assert call(lambda: (0,)) is None
    assert call(lambda size: (0, size), 7) == 7

    def cudaMalloc(size):
        return Status(2), None

    with pytest.raises(
        ConfigError, match=r"cudaMalloc failed with CUDA error 2 \(cudaErrorMemoryAllocation\); need more"
    ):
        call(cudaMalloc, 7)
    with pytest.raises(ConfigError, match=r"CUDA error 35 \(no name\); need a GPU that works"):
        call(lambda: (35,))


def put_gpus(monkeypatch, *names):
    found = [SimpleNamespace(name=name, major=9, minor=0) for name in names]
    cuda = SimpleNamespace(cudaGetDeviceCount=lambda: (0, len(found)), cudaGetDeviceProperties=lambda i: (0, found[i]))
    monkeypatch.setattr(engine_library, "import_cuda", lambda: cuda)


def test_gpus_are_numbered_as_cuda_does(monkeypatch):
    put_gpus(monkeypatch, b"NVIDIA H100\0\0", "NVIDIA A100")
    assert [gpu.name for gpu in list_gpus()] == ["NVIDIA H100", "NVIDIA A100"]
    assert find_gpu(1) == Gpu(name="NVIDIA A100", compute_capability="9.0")
    with pytest.raises(ConfigError, match=r"no GPU of device=2; there are: 0 \(NVIDIA H100\), 1 .*; try: device=0"):
        find_gpu(2)
    with pytest.raises(ConfigError, match="no GPU of device=-1"):
        find_gpu(-1)


def no_driver():
    raise RuntimeError("libcuda.so was not found")


@pytest.mark.parametrize("count", [lambda: (35, None), no_driver])
def test_without_a_driver_there_is_no_gpu(count, monkeypatch):
    monkeypatch.setattr(engine_library, "import_cuda", lambda: SimpleNamespace(cudaGetDeviceCount=count))
    assert list_gpus() == []
    with pytest.raises(ConfigError, match=r"there are: none; need an NVIDIA GPU and its driver; try: provider=cpu"):
        find_gpu(0)


def test_the_engine_modules_load_neither_torch_nor_tensorrt():
    import subprocess

    code = (
        "import sys, cellvision.runtime.engines.session\n"
        "print([n for n in ('torch', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda') if n in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert printed.stdout.strip() == "[]", printed.stderr
