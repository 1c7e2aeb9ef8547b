"""The net from scratch that a compression is compared with: trained beside it, and the same one when that goes on."""

from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch

from cellvision import small_net
from cellvision.compression.prune.step import Prune
from cellvision.export.compressed.narrowing import narrow
from cellvision.models.build import build_model
from cellvision.training.checkpoint import load_net
from compressed_fit import build_data, fit

pytestmark = pytest.mark.filterwarnings("ignore")

CONF = Path(__file__).parents[2] / "conf"
SETTINGS = [
    "compress=[prune]", "~callbacks.pictures", "logger=csv", "optim.lr=1e-3", "monitor=val/pixel/miou", "ckpt=unused",
    "data=synthetic_livedead",
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A net that was pruned for 2 epochs, with what the small one is trained by."""
    data = build_data()
    task, _, _ = fit(tmp_path, [Prune(epochs=2, macs=0.5, batches=1)], data=data)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("compress", overrides=[*SETTINGS, f"run_dir={tmp_path}"])
    return lambda: small_net.train_scratch(cfg, data, task, tmp_path, compression=SimpleNamespace(start=None, epochs=2))


def test_a_small_net_that_goes_on_keeps_its_width(run, tmp_path, monkeypatch, capsys):
    """Times vary, and another search might find another width, which none of the weights would fit."""

    def find(data, task):
        searches.append(task)
        return narrow(task.record.net, torch.zeros(1, 3, 64, 64), 0.1 + 0.3 * len(searches))

    searches = []
    monkeypatch.setattr(small_net, "_find_widths", find)
    with monkeypatch.context() as ended:
        ended.setattr("cellvision.training.finish.finish_run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    _, before = load_net(tmp_path / "scratch" / "checkpoints" / "last.ckpt")
    best = run()
    assert len(searches) == 1
    net, record = load_net(best)
    assert record.recipe == before.recipe
    assert record.recipe[0]["ratio"] == 0.4
    assert sum(value.numel() for value in net.parameters()) < 0.5 * count_whole(record.net)
    assert capsys.readouterr().out.count("a fresh net with 60% of the channels; 2 epochs, optim of this run") == 2
    assert run() == best  # which is there, and not trained again
    assert capsys.readouterr().out == ""


def count_whole(config):
    return sum(value.numel() for value in build_model(**config).parameters())
