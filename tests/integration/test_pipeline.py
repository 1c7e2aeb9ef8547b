"""The whole pipeline, by one command: a worse net does not replace a better one, and a good one ends in production."""

import json
import sys

import pytest

from cellvision.bundle import Channel, load_manifest
from cellvision.release.gate import Bar
from cellvision.release.pipeline import write_setting
from cellvision.release.record import Scores
from cellvision.release.registry import ModelRegistry
from cellvision.serve.server import open_socket
from forked import call
from stain_net import build_graph, write_bundle

pytest.importorskip("uvicorn", reason='needs pip install "cellvision[serve]"')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # a dozen processes, of which four import torch
    pytest.mark.skipif(sys.platform == "win32", reason="signals are other ones there"),
]

DATA = ["data.datasets.all.fields=12", "+data.datasets.all.height=64", "+data.datasets.all.width=64"]
DATA += ["+data.datasets.all.cells=[2,4]"]
TRAIN = ["data.augment.crop.size=32", "data.batch_size=2", "data.draws_per_epoch=16", "data.workers=0"]
TRAIN += ["model.widths=[4,8]", "trainer.max_epochs=4", "logger=csv", "~callbacks.pictures"]
COMPRESS = ["compress=[prune]", "compress.prune.epochs=1", "compress.prune.steps=1", "compress.prune.round_to=1"]
COMPRESS += ["report.tolerance_points=100", "report.samples=2", "report.ptq=[]", "logger=csv", "~callbacks.pictures"]
COMPRESS += ["predict=0"]
STEPS = ["prepare", "train", "compress", "export", "evaluate", "register", "deploy"]


def run(folder, *more):
    with open_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    given = {"data": DATA, "train": TRAIN, "compress": COMPRESS, "export": ["samples=2"]}
    settings = [f"settings.{name}={json.dumps(words, separators=(',', ':'))}" for name, words in given.items()]
    settings += [write_setting("folder", folder / "run"), write_setting("models", folder / "models")]
    settings += [f"port={port}", "metric=pixel/miou"]
    return call("pipeline.py", *settings, "at_least=0.01", *more, timeout=800)


def list_done(printed):
    return [line.split()[1].rstrip("]") for line in printed.splitlines() if line.startswith("[") and " took " in line]


def put_into_production(registry, folder):
    """A bundle of thresholds, which finds half of what there is: more than a net after a few steps."""
    channels = (Channel(name="hoechst", role="nuclear"), Channel(name="pi", role="dead"))
    bundle = write_bundle(folder / "thresholds", build_graph(scale=6), channels=channels)
    graph = load_manifest(bundle).graphs[0].sha256
    scores = Scores(values={"pixel/miou": 0.001}, data_fingerprint="others", images=1, graph_sha256=graph)
    registry.register(bundle, "livedead", scores=scores, bar=Bar(metric="pixel/miou"))
    registry.set_production("livedead", 1)


def test_one_command_from_data_to_production_unless_what_is_there_is_better(tmp_path):
    tmp_path /= "Löwe, it's (2)"  # signs that mean something else in settings
    registry = ModelRegistry(tmp_path / "models")
    put_into_production(registry, tmp_path)
    worse = run(tmp_path)
    assert worse.returncode == 2, worse.stdout + worse.stderr
    assert list_done(worse.stdout) == [*STEPS[:5], "evaluate_production"]
    assert "epoch 4/4" in worse.stdout  # what the steps print comes through
    said = worse.stderr.splitlines()
    assert said[-2].startswith("cellvision: pixel/miou 0.")
    assert "livedead version 1, which is in production, has 0.3" in said[-2]  # on these fields, and not 0.001
    assert said[-1].startswith("error: step register ended with status 2; need 0; try: see above; then the same")
    assert registry.find_production("livedead").version == 1
    assert len(registry.list_versions("livedead")) == 1

    other = run(tmp_path, "name=other")
    assert other.returncode == 0, other.stdout + other.stderr
    assert list_done(other.stdout) == STEPS[5:]
    assert "other version 1 is in production; its server was stopped" in other.stdout
    version = registry.find_production("other")
    assert load_manifest(version.bundle) == load_manifest(tmp_path / "run" / "bundle")
    assert version.tags["recipe"] == "prune"
    assert version.scores.images == 4  # a third of 12
    assert version.gate.value == version.scores.values["pixel/miou"]
    assert version.scores.data_fingerprint != version.tags["training_data"] != ""

    registry.register(registry.get("livedead", 1).bundle, "other")  # by somebody else, meanwhile, without a gate
    again = run(tmp_path, "name=other")
    assert again.returncode == 0, again.stdout + again.stderr
    assert list_done(again.stdout) == ["deploy"]
    assert "other version 1 is in production" in again.stdout  # and not the newest

    registry.set_production("other", 2)
    refused = run(tmp_path, "name=other")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert list_done(refused.stdout) == ["evaluate_production"]
    assert "other version 2, which is in production, has 0.3" in refused.stderr
    assert registry.find_production("other").version == 2
