"""Two processes prune, mask and quantise a net in one run: theirs is the same net all along."""

import hashlib
import json
import os
import socket
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import multiprocessing

from cellvision.compression.prune.masks import measure_sparsity
from cellvision.compression.prune.step import Prune
from cellvision.compression.qat.step import Quantize
from cellvision.models.structure.fake_quant import find_fake_quants
from cellvision.training.averaging import Ema
from cellvision.training.checkpoint import load_net
from compressed_fit import fit

pytestmark = pytest.mark.filterwarnings("ignore")

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def digest(values, *, without=()):
    """Of names, shapes and every bit."""
    found = hashlib.sha256()
    for name, value in sorted(values.items()):
        if not name.endswith(without):
            found.update(f"{name} {tuple(value.shape)} ".encode() + value.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


class Watch(Callback):
    """Digests of the net after every training batch, without what follows a process's own batch; of the net that each
    epoch begins with, and of the net that is validated, the average, with all; how many weights there are, and how many
    ranges of activations."""

    def __init__(self):
        self.begun, self.trained, self.validated, self.sizes = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.begun.append(digest(pl_module.net.state_dict()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append(digest(pl_module.net.state_dict(), without=STATISTICS))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.validated.append(digest(pl_module.net.state_dict()))
            count = sum(value.numel() for value in pl_module.net.parameters())
            self.sizes.append((count, len(list(find_fake_quants(pl_module.net)))))


def run_process(rank, folder, results):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": folder.name.rpartition("_")[2], "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "NODE_RANK": "0", "RANK": str(rank)}
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=240))
    cuts = {"ratio": 0.5, "importance": "fisher", "steps": 2, "batches": 1, "sensitivity": True}
    steps = [
        Prune(epochs=2, masks="unstructured", sparsity=0.4, **cuts),
        Quantize(epochs=2, freeze_epochs=1, when="always", calibration_batches=1),
    ]
    watch = Watch()
    fit(folder, steps, Ema(decay=0.5), watch, strategy=strategy, devices=2)
    results.put((rank, {name: getattr(watch, name) for name in ("begun", "trained", "validated", "sizes")}))


@pytest.mark.slow
def test_two_processes_prune_and_quantise_one_net(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp(f"ddp_{port}", numbered=False)
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=run_process, args=(rank, folder, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(results.get() for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert found[0] == found[1]
    assert len(set(found[0]["trained"])) == len(found[0]["trained"]) == 4
    (first, no_ranges), (second, _), (third, ranges), last = found[0]["sizes"]
    assert first > second == third
    assert (no_ranges, ranges) == (0, 8)
    assert last == (third, ranges)
    net, record = load_net(folder / "checkpoints" / "quantize.ckpt")
    assert digest(net.state_dict()) in [found[0]["begun"][2], *found[0]["validated"][2:]]
    assert [step["step"] for step in record.recipe] == ["prune", "quantize"]
    assert measure_sparsity(net) == pytest.approx(record.recipe[0]["zeros"]) == pytest.approx(0.4, abs=0.001)
    assert len(json.loads((folder / "sensitivity_prune.json").read_text())["rows"]) > 5
    assert (folder / "sensitivity_prune.png").stat().st_size > 5000
