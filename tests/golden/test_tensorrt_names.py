"""Every name of TensorRT that the library uses is there in each version that it is made for.

A check of names, not of behaviour: TensorRT itself can only be installed from its vendor's index and only be run on a
GPU. The names come from the real bindings; ``list_tensorrt_names.py`` says how. What the functions do is tested with
TensorRT-RTX where it needs no GPU (``tests/unit/export/test_tensorrt_build.py``).
"""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="utf-8"))
SOURCES = sorted(
    path
    for folder in ("export/tensorrt", "runtime/engines")
    for path in (ROOT / "src/cellvision" / folder).glob("*.py")
)

OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
}
"""From variables, or attributes of ``self``, to what they hold where a function has the library in its hands."""

OURS = {"error": ("with_traceback",), "engine": ("name", "is_file", "with_name"), "profile": ("items", "values")}
"""Attributes of other things that have one of these names: of a path, of a dict."""


def find_uses(source):
    """Names of the library in one file: "Builder", "BuilderFlag.TF32", "IExecutionContext.infer_shapes"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            words = _spell(node)
            if words[0] == "trt" and not words[-1].startswith("__"):
                found.add(".".join(words[1:]))
            owner = words[1] if words[0] == "self" and len(words) == 3 else words[0] if len(words) == 2 else ""
            if owner in OBJECTS and words[-1] not in OURS.get(owner, ()):
                found.add(f"{OBJECTS[owner]}.{words[-1]}")
        if isinstance(node, ast.ClassDef):
            for base in (_spell(base) for base in node.bases if isinstance(base, ast.Attribute)):
                if base[0] == "trt":
                    methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                    found |= {f"{base[1]}.{method}" for method in methods if not method.startswith("_")}
    return {name for name in found if name}


def _spell(node):
    """The words of ``a.b.c``; an empty first word where it does not begin with a name."""
    words = []
    while isinstance(node, ast.Attribute):
        words.insert(0, node.attr)
        node = node.value
    return [node.id if isinstance(node, ast.Name) else "", *words]


def is_known(name, listed):
    """Whether a version has a name: a chain is followed from the class on, "ILogger.Severity.ERROR" to its second."""
    owner, _, inner = name.partition(".")
    if not inner:
        return owner in listed[""]
    return inner.split(".")[0] in listed.get(owner, ())


@pytest.fixture(scope="module")
def uses():
    return set().union(*(find_uses(path.read_text(encoding="utf-8")) for path in SOURCES))


def test_the_search_finds_what_is_used(uses):
    assert {
        "Builder", "Builder.build_serialized_network", "BuilderFlag.TF32", "OnnxParser.parse_from_file",
        "ParserError.node_operator", "IProgressMonitor.phase_start", "ILogger.log", "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_execution_context", "IExecutionContext.execute_async_v3", "IBuilderConfig.progress_monitor",
        "IOptimizationProfile.set_shape", "nptype",
    } <= uses  # fmt: skip


@pytest.mark.parametrize("version", sorted(NAMES))
def test_tensorrt_has_every_name(uses, version):
    assert sorted(name for name in uses if not is_known(name, NAMES[version])) == []


def test_tensorrt_rtx_has_every_name(uses):
    trt = pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this machine")
    for name in uses:
        found = trt
        for word in name.split("."):
            assert hasattr(found, word), name
            found = getattr(found, word)


def find_cuda_uses(source):
    """Names of the CUDA runtime's bindings in one file."""
    spelt = [_spell(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    found = {word for words in spelt for word in words[1:] if word.startswith("cuda")}
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    kinds = {text for text in strings if isinstance(text, str) and text.startswith("cudaMemcpy")}
    return found | {f"cudaMemcpyKind.{kind}" for kind in kinds}


def test_the_bindings_of_cuda_have_every_name():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="no wheel of cuda-bindings for this machine")
    uses = set().union(*(find_cuda_uses(path.read_text(encoding="utf-8")) for path in SOURCES))
    assert {"cudaMalloc", "cudaMemcpyAsync", "cudaSetDevice", "cudaMemcpyKind.cudaMemcpyHostToDevice"} <= uses
    for name in uses:
        owner, _, inner = name.partition(".")
        assert hasattr(runtime, owner), name
        assert not inner or hasattr(getattr(runtime, owner), inner), name


def test_lowest_versions_are_listed():
    assert {version.rsplit(".", 2)[0] for version in NAMES} >= {"10.12", "10.16", "11.4"}


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16"),
        ("builder.platform_has_fast_fp16", "Builder.platform_has_fast_fp16"),
        ("class C(trt.IInt8MinMaxCalibrator):\n    def get_batch(self): pass", "IInt8MinMaxCalibrator"),
        ("engine.num_bindings", "ICudaEngine.num_bindings"),
        ("self._context.execute_async_v2(0)", "IExecutionContext.execute_async_v2"),
    ],
)
def test_what_version_11_took_away_is_found(source, missing):
    uses = find_uses(source)
    assert missing in [name for name in uses if not is_known(name, NAMES["11.4.0.106"])]
