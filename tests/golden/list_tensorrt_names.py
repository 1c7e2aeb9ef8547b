"""Write ``tensorrt_names.json``: the names that TensorRT's Python bindings have, for ``test_tensorrt_names.py``.

The library itself comes from its vendor's index only, but its bindings lie on the public one. Stubs of its three shared
libraries, of nine functions that do nothing, are enough to import them, so that classes and enums can be listed:

    pip download --no-deps --dest wheels tensorrt_cu12_bindings==10.12.0.36
    pip download --no-deps --dest wheels tensorrt_cu13_bindings==10.16.1.11
    pip download --no-deps --dest wheels tensorrt_cu13_bindings==11.4.0.106
    python tests/golden/list_tensorrt_names.py wheels/*.whl

It needs a C compiler and wheels for the Python that runs it. Names only: nothing here shows what a function does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LISTING = Path(__file__).with_name("tensorrt_names.json")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion",
    "getPluginRegistry", "getBuilderPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
CLASSES = (
    "Builder", "BuilderFlag", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "ITimingCache", "Logger", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError", "Runtime",
)  # fmt: skip
LIST_NAMES = """
import json, sys, tensorrt_bindings
found = {name: sorted(inner for inner in dir(getattr(tensorrt_bindings, name)) if not inner.startswith("_"))
         for name in sys.argv[1:]}
found[""] = sorted(name for name in dir(tensorrt_bindings) if not name.startswith("_"))
print(json.dumps({tensorrt_bindings.__version__: found}))
"""


def list_names(wheel: Path) -> dict[str, dict[str, list[str]]]:
    """From the version of a wheel to the names in each class, and under "" those of the module itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        source = folder / "stub.c"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in FUNCTIONS))
        major = wheel.name.split("-")[1].split(".")[0]
        for library in LIBRARIES:
            file = f"lib{library}.so.{major}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(folder / file), str(source)]
            subprocess.run(command, check=True)
        environment = {"LD_LIBRARY_PATH": name, "PYTHONPATH": name}
        command = [sys.executable, "-c", LIST_NAMES, *CLASSES]
        printed = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return json.loads(printed.stdout)


def main() -> None:
    """List the wheels of the command line."""
    found: dict[str, dict[str, list[str]]] = {}
    for wheel in sys.argv[1:]:
        found |= list_names(Path(wheel))
    rows = [
        f" {json.dumps(version)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(inner)}" for name, inner in sorted(names.items()))
        + "\n }"
        for version, names in sorted(found.items())
    ]
    LISTING.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    print(f"{LISTING.name}: {', '.join(sorted(found))}")


if __name__ == "__main__":
    main()
