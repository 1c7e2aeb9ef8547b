"""What ``cmake --install`` leaves is enough for another project, and the library's own tests pass."""

import os
import subprocess

import pytest
import tifffile

import cpp_build
from cellvision.runtime.predictor import Predictor
from stain_net import draw_cells

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def built():
    return cpp_build.build()


def call(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_library_pass(built):
    assert "100% tests passed" in call("ctest", "--test-dir", built, "--output-on-failure")


def test_a_consumer_builds_against_the_installation(built, stain_bundle, tmp_path):
    call("cmake", "--install", built, "--prefix", tmp_path / "installed")
    assert (tmp_path / "installed" / "bin" / "cellvision_predict").exists()
    prefixes = f"{tmp_path / 'installed'};{cpp_build.DEPENDENCIES / 'usr'}"
    source = cpp_build.ROOT / "cpp" / "examples" / "consumer"
    call("cmake", "-S", source, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefixes}")
    call("cmake", "--build", tmp_path / "build")
    image = draw_cells((60, 80), [(15, 15), (40, 60)], 9)
    tifffile.imwrite(tmp_path / "field.tif", image, photometric="minisblack")
    environment = {**os.environ, "CELLVISION_ORT_LIBRARY": str(cpp_build.find_ort_library())}
    command = [str(tmp_path / "build" / "count_cells"), str(stain_bundle), str(tmp_path / "field.tif")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    expected = f"{len(Predictor(stain_bundle, threads=1)(image))} cells\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
