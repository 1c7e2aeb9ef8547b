"""The C++ programs, built once per session: as released, or by the preset that CELLVISION_CPP_PRESET names."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
DEPENDENCIES = ROOT / "build" / "cpp-deps"
BUILT = os.environ.get("CELLVISION_CPP_BUILD")  # a folder that is built already, tested as it is
PRESET = os.environ.get("CELLVISION_CPP_PRESET", "release")
FOLDERS = {"release": ROOT / "build" / "cpp", "sanitize": ROOT / "build" / "cpp-sanitize"}
JOBS = str(min(4, os.cpu_count() or 1))


def build() -> Path:
    """The build folder, up to date; skips the test, with the reason, where the machine has no compiler or headers."""
    folder, reason = _build()
    if reason:
        pytest.skip(reason)
    return folder


def find_ort_library() -> Path:
    """ONNX Runtime of the Python package, which the C++ library opens too."""
    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))


def run(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """A built program, run to its end; a sanitizer's finding shows in its exit status and text."""
    path = build() / program
    environment = {**os.environ, "CELLVISION_ORT_LIBRARY": str(find_ort_library())}
    command = [str(path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, check=False, timeout=240, **options)


@functools.cache
def _build() -> tuple[Path, str]:
    if BUILT:
        return Path(BUILT), ""
    folder = FOLDERS[PRESET]
    if missing := [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]:
        return folder, f"no {' and no '.join(missing)} on this machine"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # tests of several processes need it, one builds it
        return _make(folder)


def _make(folder: Path) -> tuple[Path, str]:
    fetched = _call(ROOT / "cpp" / "fetch_dependencies.sh", DEPENDENCIES)
    if fetched.returncode:
        return folder, fetched.stderr.strip().splitlines()[-1]
    if not (folder / "CMakeCache.txt").exists():
        _call("cmake", "--preset", PRESET, cwd=ROOT / "cpp", check=True)
    _call("cmake", "--build", folder, "--parallel", JOBS, check=True)
    return folder, ""


def _call(*command: object, cwd: Path = ROOT, check: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    said = f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    assert not check or done.returncode == 0, said
    return done
