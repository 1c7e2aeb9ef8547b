"""A net pruned while it is trained: optimizer, average, best checkpoints, records, and two processes."""

import json
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import multiprocessing

from cellvision.bundle import Splitting
from cellvision.compression.callback import Compression
from cellvision.compression.prune.step import Prune
from cellvision.compression.step import Step
from cellvision.data.augment import RandomCrop
from cellvision.data.datamodule import CellDataModule
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.errors import ConfigError
from cellvision.models.build import build_model
from cellvision.training.averaging import Ema
from cellvision.training.callbacks import BestCheckpoint, EarlyStop
from cellvision.training.checkpoint import AtomicCheckpointIO, load_net
from cellvision.training.optim import Optim
from cellvision.training.task import SegmentationTask

pytestmark = pytest.mark.filterwarnings("ignore")


def build_data() -> CellDataModule:
    data = CellDataModule(
        datasets={"all": SyntheticLiveDead(fields=8, height=64, width=64, cells=(3, 5))},
        fractions={"train": 0.5, "val": 0.5},
        augment={"crop": RandomCrop(size=32)},
        batch_size=2,
        draws_per_epoch=4,
        workers=0,
    )
    data.setup()
    return data


def fit(folder, steps, *callbacks, base_epochs=0, measure_ms=None, **settings):
    torch.manual_seed(0)
    data = build_data()
    compression = Compression(steps, folder=folder, base_epochs=base_epochs, measure_ms=measure_ms)
    net = build_model(name="unet", in_channels=3, classes=data.classes, kind="viability", widths=[8, 16])
    task = SegmentationTask(net=net, optim=Optim(), splitting=Splitting(), phases=compression.phases)
    best = BestCheckpoint(folder=folder / "checkpoints", monitor="val/pixel/miou")
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": compression.epochs,
            "callbacks": [compression, *callbacks, best],
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            "plugins": [AtomicCheckpointIO()],
            **settings,
        }
    )
    trainer.fit(task, datamodule=data)
    return task, trainer, best


class Watch(Callback):
    """Notes at the end of each epoch what the optimizer trains and how the weights have moved."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {name: value.detach().clone() for name, value in pl_module.net.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        now = dict(pl_module.net.named_parameters())
        self.epochs.append(
            {
                "all": {id(parameter) for parameter in trained} == {id(value) for value in now.values()},
                "moments": all(optimizer.state[value]["exp_avg"].shape == value.shape for value in now.values()),
                "steps": {float(state["step"]) for state in optimizer.state.values()},
                "moved": all(not torch.equal(value, self.before[name]) for name, value in now.items()),
                "numbers": sum(value.numel() for value in now.values()),
            }
        )


def test_a_pruned_net_is_trained_on_with_its_moments(tmp_path, capsys):
    watch = Watch()
    steps = [Prune(epochs=3, macs=0.5, steps=2, batches=2)]
    _, _, best = fit(tmp_path, steps, Ema(decay=0.9), watch, base_epochs=1)
    assert all(epoch["all"] and epoch["moments"] and epoch["moved"] for epoch in watch.epochs)
    counts = [epoch["numbers"] for epoch in watch.epochs]
    assert counts[0] > counts[1] > counts[2] == counts[3]
    assert [epoch["steps"] for epoch in watch.epochs] == [{2.0}, {4.0}, {6.0}, {8.0}]  # nothing began anew
    assert "prune     2 of 2: " in capsys.readouterr().out
    best.publish()
    for name, steps_behind in (("base", 0), ("prune", 1), ("best", 1)):
        net, record = load_net(tmp_path / "checkpoints" / f"{name}.ckpt")
        assert len(record.recipe) == steps_behind
        assert sum(value.numel() for value in net.parameters()) == counts[-1 if steps_behind else 0]
        assert json.dumps(record.to_plain())
    assert record.recipe[0]["done"] == 2
    assert record.recipe[0]["macs"] == pytest.approx(0.5, abs=0.05)


def test_the_average_is_what_is_saved_and_it_follows_the_cut(tmp_path):
    ema = Ema(decay=0.5)
    task, trainer, _ = fit(tmp_path, [Prune(epochs=2, ratio=0.5, batches=1)], ema)
    average = dict(ema._average_model.module.net.named_parameters())
    for name, value in task.net.named_parameters():
        assert average[name].shape == value.shape
        assert torch.equal(average[name], value)  # at the end the net gets the average's weights
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    net, _ = load_net(tmp_path / "it.ckpt")
    assert {n: v.shape for n, v in net.named_parameters()} == {n: v.shape for n, v in average.items()}


def test_statistics_are_those_of_the_pruned_net(tmp_path):
    """Directly behind a cut a net in evaluation has statistics of its own maps, and not of the former ones."""
    seen = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx:
                return
            net = pl_module.net
            norm = next(each for each in net.modules() if isinstance(each, torch.nn.BatchNorm2d))
            seen["kept"] = norm.running_mean.clone()
            images = [one.images for one in trainer.datamodule.collect_batches(1, epoch=trainer.current_epoch)]
            maps = []
            handle = norm.register_forward_hook(lambda module, given, found: maps.append(given[0]))
            with torch.no_grad():
                net.eval().logits(images[0])
            net.train()
            handle.remove()
            seen["true"] = maps[0].mean((0, 2, 3))

    fit(tmp_path, [Prune(epochs=1, ratio=0.5, batches=1)], Look())
    assert torch.allclose(seen["kept"], seen["true"], atol=1e-5)


def test_a_latency_is_looked_for_and_met(tmp_path, capsys):
    def measure(net, image):
        return sum(value.numel() for value in net.parameters()) / 1000

    task, _, _ = fit(tmp_path, [Prune(epochs=1, latency_ms=2.0, batches=1)], measure_ms=measure)
    assert 1.0 < measure(task.net, None) <= 2.0
    assert "% of the MACs" in capsys.readouterr().out


def test_a_latency_that_is_met_already_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"prune\.latency_ms=5, which the net meets already"):
        fit(tmp_path, [Prune(epochs=1, latency_ms=5, batches=1)], measure_ms=lambda net, image: 1.0)
    with pytest.raises(ConfigError, match="a latency to be met; need a run that can measure"):
        fit(tmp_path / "other", [Prune(epochs=1, latency_ms=5, batches=1)])


def test_scales_fall_before_pruning_by_them(tmp_path):
    sums = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            norms = [each for each in pl_module.net.modules() if isinstance(each, torch.nn.BatchNorm2d)]
            sums.append(sum(float(norm.weight.abs().mean()) for norm in norms) / len(norms))

    strong = {"importance": "bn_scale", "sparse_epochs": 2, "sparse_strength": 5.0}
    task, _, _ = fit(tmp_path, [Prune(epochs=3, ratio=0.4, batches=1, **strong)], Look())
    assert sums[1] < sums[0] < 1.0
    assert sum(value.numel() for value in task.net.parameters()) < 3000


def test_sensitivity_is_drawn(tmp_path):
    fit(tmp_path, [Prune(epochs=1, ratio=0.3, batches=1, sensitivity=True)])
    rows = json.loads((tmp_path / "sensitivity_prune.json").read_text())
    assert len(rows["rows"]) > 5
    assert (tmp_path / "sensitivity_prune.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"macs": 0.5, "latency_ms": 3}, r"prune\.latency_ms=3 with prune\.macs=0\.5"),
        ({"latency_ms": -1}, r"prune\.latency_ms=-1"),
        ({"ratio": 0.5, "steps": 5, "epochs": 3}, r"prune\.epochs=3 with prune\.steps=5.*need 5 epochs"),
        ({"ratio": 0.5, "importance": "bn_scale"}, r"prune\.sparse_epochs=0"),
        ({"ratio": 0.5, "batches": 0}, r"prune\.batches=0"),
        ({"ratio": 0.5, "latency_px": 8}, r"prune\.latency_px=8"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        Prune(**{"epochs": 4, **settings})


def test_early_stopping_and_plateau_are_refused(tmp_path):
    stop = EarlyStop(monitor="val/pixel/miou", mode="max", patience=3)
    with pytest.raises(ConfigError, match=r"~callbacks\.early_stopping"):
        fit(tmp_path, [Prune(epochs=1, ratio=0.5)], stop)
    with pytest.raises(ConfigError, match="plateau in a run of several phases"):
        Optim(schedule="plateau").build_schedules(
            None,
            total_steps=3,
            monitor="",
            mode="max",
            phases=Compression([Prune(epochs=1, ratio=0.5)], folder=tmp_path).phases,
        )


class Stopping(Step):
    """Finds the net good enough at once."""

    name = key = "quantize"

    def begin_epoch(self, run, epoch):
        self.before = {name: value.clone() for name, value in run.net.state_dict().items()}
        run.stop("good enough", score=run.score())


def test_a_step_can_end_the_run_with_the_net_as_it_is(tmp_path, capsys):
    step = Stopping(epochs=5, lr=1.0)
    _, trainer, best = fit(tmp_path, [step])
    assert trainer.current_epoch <= 1
    assert "good enough" in capsys.readouterr().out
    net, _ = load_net(tmp_path / "checkpoints" / "quantize.ckpt")
    for name, value in net.state_dict().items():
        assert torch.equal(value, step.before[name])
    assert best.score is not None


def run_process(rank, folder, results):
    torch.set_num_threads(1)
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": folder.name.rpartition("_")[2], "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "NODE_RANK": "0", "RANK": str(rank)}
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    steps = [Prune(epochs=2, ratio=0.5, importance="taylor", steps=2, batches=2)]
    task, _, _ = fit(folder, steps, strategy=strategy, devices=2)
    results.put((rank, {name: value.numpy() for name, value in task.net.state_dict().items()}))


@pytest.mark.slow
def test_two_processes_prune_alike_and_stay_equal(tmp_path_factory):
    import socket

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
    whole = build_model(name="unet", in_channels=3, classes=("background", "live", "dead"), widths=[8, 16])
    assert sum(v.size for v in found[0].values()) < 0.7 * sum(v.numel() for v in whole.state_dict().values())
    for name, value in found[0].items():
        if "running" not in name and "num_batches" not in name:  # statistics are each process's own until saved
            assert (value == found[1][name]).all(), name
