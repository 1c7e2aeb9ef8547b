"""Weights held at zero while a net is trained: from the cut on, through later steps, runs and resumed ones."""

import json

import pytest
import torch
from lightning.pytorch import Callback

from cellvision.compression.prune.step import Prune
from cellvision.compression.qat.step import Quantize
from cellvision.errors import ConfigError
from cellvision.models.structure.fake_quant import is_rounding
from cellvision.training.averaging import Ema
from cellvision.training.checkpoint import load_net
from compressed_fit import fit

pytestmark = pytest.mark.filterwarnings("ignore")


def list_zeros(net):
    """{weight: (its shape) bool} of all that torch's own layers multiply with."""
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)
    layers = {name: module for name, module in net.named_modules() if isinstance(module, kinds)}
    return {f"{name}.weight": layer.weight.detach() == 0 for name, layer in layers.items()}


def share(zeros):
    return sum(int(each.sum()) for each in zeros.values()) / sum(each.numel() for each in zeros.values())


class Watch(Callback):
    """The zeros of the net before each batch's update could have been forgotten, and of what is validated."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append(list_zeros(pl_module.net))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.validated.append(list_zeros(pl_module.net))


class Keep(Callback):
    """Saves a checkpoint at the end of the second epoch, as ``callbacks.last`` does."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/second.ckpt")


def build_steps():
    return [
        Prune(epochs=1, masks="2:4", batches=1),
        Quantize(epochs=2, when="always", calibration_batches=1),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, watch = tmp_path_factory.mktemp("masked"), Watch()
    task, _, best = fit(folder, build_steps(), Ema(decay=0.5), watch, Keep())
    best.publish()
    return folder, task, watch


def test_two_of_four_stay_zero_through_all_steps_and_in_the_average(run):
    _, task, watch = run
    (pruned, _) = task.record.recipe
    assert len(watch.trained) == 6
    assert len(watch.validated) == 3
    for zeros in watch.trained + watch.validated:
        masked = {name for name, each in zeros.items() if each.any()}
        assert masked == set(pruned["masks"])
        assert len(masked) > 3
        for name in masked:
            assert (zeros[name].reshape(-1, 4).sum(1) == 2).all(), name
            assert torch.equal(zeros[name], watch.trained[0][name])
    assert pruned["zeros"] == pytest.approx(share(watch.trained[0]))
    assert (pruned["widths"], pruned["options"]["masks"]) == ({}, "2:4")


def test_a_checkpoint_has_the_zeros_and_tells_of_them(run):
    folder, task, watch = run
    net, record = load_net(folder / "checkpoints" / "best.ckpt")
    assert is_rounding(net)
    assert record.recipe == task.record.recipe
    assert json.dumps(record.recipe)
    for name, zeros in list_zeros(net).items():
        assert torch.equal(zeros, watch.trained[0][name]), name


def test_a_resumed_run_ends_like_an_unbroken_one(run, tmp_path):
    folder, task, _ = run
    resumed, _, _ = fit(tmp_path, build_steps(), Ema(decay=0.5), resume=str(folder / "second.ckpt"))
    for (name, one), other in zip(task.net.state_dict().items(), resumed.net.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_another_run_holds_them_too_and_does_not_pull_fours_apart(run, tmp_path):
    start = run[0] / "checkpoints" / "prune.ckpt"
    before = list_zeros(load_net(start)[0])
    task, _, _ = fit(tmp_path, [Quantize(epochs=1, when="always", calibration_batches=1)], start=start)
    for name, zeros in list_zeros(task.net).items():
        assert torch.equal(zeros, before[name]), name
    with pytest.raises(ConfigError, match=r"masks 2:4, whose fours.*; need new masks; try: compress\.prune\.masks=2:4"):
        fit(tmp_path, [Prune(epochs=1, ratio=0.5)], start=start)


def test_unstructured_masks_grow_with_the_cuts_and_fit_the_narrower_net(tmp_path, capsys):
    watch = Watch()
    steps = [Prune(epochs=2, steps=2, ratio=0.4, schedule="linear", masks="unstructured", sparsity=0.6, batches=1)]
    task, _, _ = fit(tmp_path, steps, watch)
    assert [share(zeros) for zeros in watch.validated] == pytest.approx([0.3, 0.6], abs=0.001)
    first, last = ({name: each.shape for name, each in zeros.items()} for zeros in watch.validated)
    assert first != last
    (record,) = task.record.recipe
    assert 0 < record["macs"] < 0.7
    assert "prune     2 of 2: 60.0% of the weights are zero (unstructured), in " in capsys.readouterr().out
