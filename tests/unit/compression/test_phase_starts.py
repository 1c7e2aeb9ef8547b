"""A phase begins with the best net of the one before, and an average of the weights with it."""

import pytest
import torch
from lightning.pytorch import Callback

from cellvision.compression.distill.step import Distill
from cellvision.compression.prune.step import Prune
from cellvision.compression.qat.step import Quantize
from cellvision.compression.run import Run
from cellvision.errors import ConfigError
from cellvision.training.averaging import Ema
from cellvision.training.checkpoint import load_net
from compressed_fit import fit

pytestmark = pytest.mark.filterwarnings("ignore")


class Watch(Callback):
    """Notes the net, and its average, that the second phase begins with."""

    def __init__(self, average=None):
        self.average, self.began = average, []

    def list_nets(self, task):
        averaged = [] if self.average is None else [self.average._average_model.module.net]
        return [task.net, *averaged]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 0:
            for net in self.list_nets(pl_module):
                self.began.append({name: value.clone() for name, value in net.state_dict().items()})


def spoil_first(monkeypatch, spoil):
    """Have ``spoil(run)`` done between the end of a phase and the beginning of the next."""
    go_on = Run.return_to_best

    def spoil_and_go_on(run, phase):
        spoil(run)
        go_on(run, phase)

    monkeypatch.setattr(Run, "return_to_best", spoil_and_go_on)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_phase_begins_with_the_best_net_of_the_one_before(tmp_path, monkeypatch, averaged):
    average = Ema(decay=0.9) if averaged else None
    watch = Watch(average)

    def spoil(run):
        with torch.no_grad():
            for net in watch.list_nets(run.task):
                for weight in net.parameters():
                    weight.add_(1)

    spoil_first(monkeypatch, spoil)
    fit(tmp_path, [Distill(epochs=1)], *([average] if averaged else []), watch, base_epochs=1)
    best, _ = load_net(tmp_path / "checkpoints" / "base.ckpt")
    assert len(watch.began) == 1 + averaged
    for began in watch.began:
        for name, value in best.state_dict().items():
            assert torch.equal(began[name], value), name


def test_without_a_best_net_the_last_goes_on(tmp_path, monkeypatch, capsys):
    spoil_first(monkeypatch, lambda run: (tmp_path / "checkpoints" / "base.ckpt").unlink())
    task, _, _ = fit(tmp_path, [Prune(epochs=1, ratio=0.3)], base_epochs=1)
    assert "no best net was kept: going on from the last" in capsys.readouterr().out
    assert task.record.recipe[-1]["step"] == "prune"


def test_ranges_are_learned_with_adamw_only(tmp_path):
    with pytest.raises(ConfigError, match=r"compress.qat.learned=true with optim.name=sgd; need optim.name=adamw"):
        fit(tmp_path, [Quantize(epochs=1, when="always", calibration_batches=1, learned=True)], optim="sgd")
