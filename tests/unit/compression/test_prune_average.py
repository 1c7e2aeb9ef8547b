"""Averages of the weights, when the net that they follow loses channels."""

import copy

import pytest
import torch
from lightning.pytorch import Callback

from cellvision.compression.prune.statistics import refresh_batch_norm
from cellvision.compression.prune.step import Prune
from cellvision.training.averaging import Ema
from compressed_fit import fit

pytestmark = pytest.mark.filterwarnings("ignore")


def list_variances(net):
    return {name: value.clone() for name, value in net.named_buffers() if name.endswith("running_var")}


class Watch(Callback):
    """The average's statistics behind each cut, and those that its own weights have on the same images."""

    def __init__(self, ema, count):
        self.ema, self.count, self.pairs = ema, count, []

    def on_train_epoch_start(self, trainer, pl_module):
        images = [batch.images for batch in trainer.datamodule.collect_batches(self.count, epoch=trainer.current_epoch)]
        net = self.ema.task.net
        again = copy.deepcopy(net)
        refresh_batch_norm(again, images)
        self.pairs.append((list_variances(net), list_variances(again)))


def test_statistics_of_an_average_are_those_of_its_own_weights_behind_every_cut(tmp_path):
    """From the second cut on an average goes on from its own numbers, not from the net's."""
    ema = Ema(decay=0.99)
    watch = Watch(ema, count=2)
    fit(tmp_path, [Prune(epochs=3, macs=0.4, steps=3, batches=2)], ema, watch)
    assert len(watch.pairs) == 3
    for found, expected in watch.pairs:
        assert len(found) > 4
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
