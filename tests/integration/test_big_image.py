"""Memory stays bounded however large the image: measured in a process of its own, on a real file."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from onnx import TensorProto, helper

from cellvision.bundle import Splitting
from cellvision.data.images import open_image
from cellvision.runtime.tiles.budget import NetCosts, compute_costs
from stain_net import CHANNELS, build_graph, draw_cells, write_bundle

BLOCK = 1000
PREDICT = """
import json, sys, psutil
from cellvision.runtime.predictor import Predictor

predictor = Predictor(sys.argv[1], threads=1)
before = psutil.Process().memory_info().rss / 2**20
cells = predictor.predict_to_folder(sys.argv[2], sys.argv[3], overlay=False)
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
print(json.dumps({"before": before, "peak": peak, "cells": len(cells), "tiles": cells.tiles}))
"""


@pytest.fixture(scope="module")
def grey_bundle(tmp_path_factory):
    """The stain net for one channel, with the tile sizes of a real bundle."""
    model = build_graph(input_shape=("b", 1, "h", "w"))
    model.graph.node[0].input[0] = "twice"
    model.graph.node.insert(0, helper.make_node("Concat", ["image", "image"], ["twice"], axis=1))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT16
    return write_bundle(
        tmp_path_factory.mktemp("grey") / "bundle",
        model,
        channels=CHANNELS[:1],
        tile_px=512,
        overlap_px=96,
        splitting=Splitting(seed_threshold=0.7),
    )


def write_image(path, shape, seed=0):
    """A compressed TIFF of blocks full of cells, written strip by strip; returns the number of cells."""
    rng = np.random.default_rng(seed)
    steps = np.arange(12.5, BLOCK, 25)
    centres = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    block = draw_cells((BLOCK, BLOCK), centres + rng.uniform(-1, 1, centres.shape), rng.uniform(8, 12.5, len(centres)))[
        0
    ]
    block += rng.integers(0, 100, block.shape, dtype=np.uint16)
    down, across = shape[0] // BLOCK, shape[1] // BLOCK
    strips = (
        zlib.compress(np.tile(block[top : top + 50], (1, across)).astype("<u2").tobytes(), 1)
        for _ in range(down)
        for top in range(0, BLOCK, 50)
    )
    tifffile.imwrite(
        path,
        strips,
        shape=shape,
        dtype="<u2",
        photometric="minisblack",
        compression="zlib",
        rowsperstrip=50,
        metadata=None,
    )
    return len(centres) * down * across


def predict(bundle, path, out):
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, bundle, path, out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_image(grey_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    found = {}
    for name, shape in (("small", (2000, 1000)), ("tall", (8000, 1000)), ("wide", (2000, 5000))):
        expected = write_image(tmp_path / "in" / f"{name}.tif", shape)
        found[name] = predict(grey_bundle, tmp_path / "in" / f"{name}.tif", tmp_path / "out")
        assert found[name]["cells"] == expected
        assert found[name]["tiles"] > 4
        with open_image(tmp_path / "out" / f"{name}_labels.tif") as labels:
            assert labels.info.shape == (1, *shape)
            assert labels.read(shape[0] - 50, shape[0], 0, shape[1]).max() == expected
    grown = {name: found[name]["peak"] - found[name]["before"] for name in found}
    # A tall image costs what its cells cost, some hundred bytes each; a wide one also costs its rows. On the way to
    # 20,000 x 20,000 px that is the first for each 1,000 px of width, and the second. The overlay is bounded by itself.
    per_tall = max(0.0, grown["tall"] - grown["small"]) / 6000
    per_wide = max(0.0, grown["wide"] - grown["small"]) / 4000
    overlay = compute_costs(NetCosts(per_px=0), channels=1, dtype="uint16", overlay_shape=(20000, 20000)).fixed / 2**20
    at_20000 = found["small"]["before"] + grown["small"] + 18000 * 20 * per_tall + 19000 * per_wide + overlay
    assert at_20000 < 2048, found
    assert max(grown.values()) < 1024, found
