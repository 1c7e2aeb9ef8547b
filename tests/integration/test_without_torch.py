"""The runtime on an instrument PC: no torch, no training packages, nothing of them even tried."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import tifffile

from stain_net import draw_cells

BLOCKED = """
import sys

class Blocker:
    # Stands first among the finders, so an installed torch is as good as absent.
    names = {"torch", "torchvision", "torchmetrics", "lightning", "timm", "hydra", "omegaconf", "onnx", "onnxscript"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
try:
    import torch
except ImportError:
    is_blocked = True
else:
    is_blocked = False
assert is_blocked, "this run has torch, and would say nothing of one without"
"""

PREDICT_AND_EVALUATE = """
import cellvision
from cellvision import Cells, Predictor, compute_viability, load_manifest, read_image
from cellvision.cli import main

bundle, images, labels, out = sys.argv[1:]
assert main(["predict", "--bundle", bundle, images, "--out", out]) == 0
assert main(["evaluate", "--bundle", bundle, "--images", images, "--labels", labels, "--json", out + "/e.json"]) == 0
assert main(["info", bundle]) == 0
image, info = read_image(images + "/a.tif")
cells = Predictor(bundle)(image, pixel_size_um=0.5)
assert len(cells) == 2 and cells.viability().live == 1
"""


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_predict_and_evaluate_run_without_torch(stain_bundle, tmp_path):
    image = draw_cells((60, 60), [(20, 20), (45, 40)], 10, dead={1})
    for folder, pixels in (("images", image), ("labels", (image[0] > 0).astype(np.uint8))):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", pixels, photometric="minisblack")
    folders = [stain_bundle, tmp_path / "images", tmp_path / "labels", tmp_path / "out"]
    done = run(BLOCKED + PREDICT_AND_EVALUATE, *folders)
    assert done.returncode == 0, done.stderr
    assert "a: 2 cells, viability 50.0 %" in done.stdout
    assert (tmp_path / "out" / "a_labels.tif").is_file()
    assert (tmp_path / "out" / "e.json").is_file()


def test_every_runtime_module_imports_without_torch():
    import cellvision

    package = Path(cellvision.__file__).parent
    modules = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for folder in ("runtime", "commands")
        for path in sorted((package / folder).glob("*.py"))
    ]
    assert len(modules) > 12
    done = run(BLOCKED + "\n".join(f"import {module}" for module in modules))
    assert done.returncode == 0, done.stderr


def test_import_is_light():
    script = "import sys, cellvision; print(sorted({'numpy', 'onnxruntime', 'torch', 'scipy'} & set(sys.modules)))"
    assert run(script).stdout == "[]\n"
    assert "no attribute 'predictor'" in run("import cellvision; cellvision.predictor").stderr
    assert "Predictor" in run("import cellvision; print(dir(cellvision))").stdout
