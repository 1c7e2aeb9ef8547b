"""A U-Net trained, pruned and taught in one run, as the callback leads it."""

import pytest
import torch
from lightning.pytorch import Callback

from cellvision.compression.distill.step import Distill
from cellvision.compression.prune.step import Prune
from cellvision.errors import ConfigError
from cellvision.training.averaging import Ema
from cellvision.training.checkpoint import AtomicCheckpointIO, load_net, load_plain_checkpoint
from compressed_fit import build_data, fit

pytestmark = pytest.mark.filterwarnings("ignore")


class Keep(Callback):
    """Keeps the checkpoint and the teacher's losses of every epoch."""

    def __init__(self, folder):
        self.folder, self.taught = folder, []

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"epoch_{trainer.current_epoch}.ckpt")
        metrics = trainer.callback_metrics.items()
        self.taught.append(sum(value.item() for name, value in metrics if "loss_distill" in name))


def teach(folder, *, resume=None, **settings):
    steps = [Prune(epochs=1, ratio=0.3, batches=1), Distill(epochs=2, **settings)]
    keep = Keep(folder)
    task, *_ = fit(folder, steps, Ema(decay=0.9), keep, data=build_data(), base_epochs=1, resume=resume)
    return task, keep.taught


FEATURES = {"schedule": "linear_to_zero", "weights": {"features": 1.0}}


def test_a_run_is_taught_by_the_net_it_trained_and_goes_on_as_it_was(tmp_path):
    task, taught = teach(tmp_path, **FEATURES)
    assert taught[0] == 0
    assert all(value > 0 for value in taught[1:])
    checkpoints = tmp_path / "checkpoints"
    last = load_plain_checkpoint(tmp_path / "epoch_3.ckpt")
    whole = sum(value.numel() for value in load_net(checkpoints / "base.ckpt")[0].parameters())
    left = sum(value.numel() for name, value in last["state_dict"].items() if name.startswith("net."))
    assert left < whole
    assert not [name for name in last["state_dict"] if "teacher" in name]
    _, record = load_net(checkpoints / "distill.ckpt")
    assert [each["step"] for each in record.recipe] == ["prune", "distill"]
    assert record.recipe[1]["teacher"] == "base.ckpt"
    for epoch in (1, 2):  # pruned, and in the middle of its own phase
        again, rest = teach(tmp_path, resume=str(tmp_path / f"epoch_{epoch}.ckpt"), **FEATURES)
        assert rest == taught[epoch + 1 :]
        for name, value in task.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name


def test_a_teacher_trained_anew_stops_a_resumed_run(tmp_path):
    teach(tmp_path)
    path = tmp_path / "checkpoints" / "base.ckpt"
    checkpoint = load_plain_checkpoint(path)
    checkpoint["state_dict"]["net.head.bias"] += 1
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    with pytest.raises(ConfigError, match=r"base\.ckpt with SHA-256"):
        teach(tmp_path, resume=str(tmp_path / "epoch_2.ckpt"))
