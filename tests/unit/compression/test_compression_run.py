"""A net pruned while it is trained: optimizer, average, best checkpoints, records."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from cellvision.bundle import Splitting
from cellvision.compression.callback import Compression
from cellvision.compression.prune.step import Prune
from cellvision.compression.qat.step import Quantize
from cellvision.compression.run import Run
from cellvision.compression.step import Step
from cellvision.errors import ConfigError
from cellvision.models.build import build_model
from cellvision.training.averaging import Ema
from cellvision.training.callbacks import EarlyStop
from cellvision.training.checkpoint import load_net
from cellvision.training.optim import Optim
from cellvision.training.task import SegmentationTask
from compressed_fit import fit

pytestmark = pytest.mark.filterwarnings("ignore")


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
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("prune     ")]
    assert [line.endswith("; macs=0.5 was asked for") for line in said] == [False, True]
    assert said[-1].startswith("prune     2 of 2: ")
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


def test_a_latency_is_looked_for_and_met_after_the_last_cut(tmp_path, capsys):
    """By gradients and in two cuts, so that which layers lose channels is not what the first search saw."""

    def measure(net, image, cells):
        assert cells is None
        return sum(value.numel() for value in net.parameters()) / 1000

    steps = [Prune(epochs=2, steps=2, latency_ms=2.0, importance="taylor", batches=1)]
    task, _, best = fit(tmp_path, steps, measure_ms=measure)
    assert 1.5 < measure(task.net, None, None) <= 2.0
    said = capsys.readouterr().out
    assert said.count("ms, 100% of the MACs") == 1
    assert "ratio=" not in said
    assert said.count(f"{measure(task.net, None, None):.4g} ms for 32 x 32 px, where 2 were asked for") == 1
    best.publish()
    (record,) = load_net(tmp_path / "checkpoints" / "best.ckpt")[1].recipe
    assert record["options"]["latency_ms"] == 2.0
    assert record["reached_ms"] == measure(task.net, None, None)
    assert record["options"]["ratio"] != 0.5


def test_a_latency_that_is_met_already_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"prune\.latency_ms=5, which the net meets already"):
        fit(tmp_path, [Prune(epochs=1, latency_ms=5, batches=1)], measure_ms=lambda net, image, cells: 1.0)
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"macs": 0.5, "latency_ms": 3}, r"prune\.latency_ms=3 with compress\.prune\.macs=0\.5"),
        ({"latency_ms": -1}, r"prune\.latency_ms=-1"),
        ({"ratio": 0.5, "steps": 5, "epochs": 3}, r"prune\.epochs=3 with compress\.prune\.steps=5.*need 5 epochs"),
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


def test_a_run_that_keeps_no_best_net_is_refused(tmp_path):
    task = SegmentationTask(
        net=build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(4, 8)),
        optim=Optim(),
        splitting=Splitting(method="components"),
    )
    with pytest.raises(ConfigError, match=r"without a BestCheckpoint .* try: callbacks=compress"):
        Compression([Prune(epochs=1, ratio=0.5)], folder=tmp_path).setup(SimpleNamespace(callbacks=[]), task, "fit")


@pytest.mark.parametrize(("monitor", "fits"), [("val/cell/f1", True), ("val/loss", False), ("val/typo", False)])
def test_a_score_that_steps_cannot_measure_is_refused_at_once(monkeypatch, tmp_path, monitor, fits):
    run = Run(None, SimpleNamespace(monitor=monitor, record=None), folder=tmp_path, teacher=tmp_path / "a.ckpt")
    if fits:
        run.check_monitor("compress=[qat]")
        return
    with pytest.raises(ConfigError, match=rf"monitor={monitor} with compress=\[qat\].* try: monitor=null"):
        run.check_monitor("compress=[qat]")
    asked = []
    monkeypatch.setattr(Run, "check_monitor", lambda run, setting: asked.append(setting) or 1 / 0)
    for step in (Quantize(epochs=1), Prune(epochs=1, ratio=0.5, sensitivity=True)):
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path, [step])
    assert asked == ["compress=[qat]", "compress.prune.sensitivity=true"]


def test_a_score_that_the_net_does_not_have_is_refused_before_training(tmp_path):
    fit(tmp_path / "base", [Prune(epochs=1, ratio=0.5, batches=1)])
    task, trainer, _ = fit(tmp_path / "again", [Prune(epochs=1, ratio=0.5, batches=1)])
    task.trainer = trainer
    run = Run(trainer, task, folder=tmp_path, teacher=tmp_path / "a.ckpt")
    for monitor in ("val/pixel/dice", "val/loss", "val/cell/live_dead_f1"):
        task.monitor = monitor
        run.check_score()
    task.monitor = "val/cell/typo"
    with pytest.raises(ConfigError, match=r"monitor=val/cell/typo, of which the net .* need one of .*val/pixel/miou"):
        run.check_score()
    callback = Compression([Prune(epochs=1, ratio=0.5)], folder=tmp_path, start=tmp_path / "a.ckpt")
    callback._run = run
    with pytest.raises(ConfigError, match="val/cell/typo"):
        callback.on_train_start(SimpleNamespace(current_epoch=0), task)
    callback.on_train_start(SimpleNamespace(current_epoch=1), task)


def test_a_step_that_cannot_be_done_tells_what_there_is_to_go_on_from(tmp_path, monkeypatch, capsys):
    def refuse(step, run, epoch):
        raise ConfigError("not so")

    monkeypatch.setattr(Quantize, "begin_epoch", refuse)
    with pytest.raises(ConfigError, match="not so"):
        fit(tmp_path, [Prune(epochs=1, ratio=0.5, batches=1), Quantize(epochs=1)])
    kept = tmp_path / "checkpoints" / "prune.ckpt"
    assert kept.is_file()
    said = f"quantize  cannot be done so; what was made before it is kept: ckpt={kept}"
    assert said in capsys.readouterr().out.splitlines()


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


def test_a_checkpoint_of_other_steps_is_explained(tmp_path):
    compression = Compression([Prune(epochs=1, macs=0.5), Quantize(epochs=1)], folder=tmp_path)
    with pytest.raises(ConfigError, match=r"without the step quantize; need one of a run of prune, quantize; try: "):
        compression.load_state_dict({"prune": {}})
    with pytest.raises(ConfigError, match=r"without the step prune; need one of a run of prune, quantize; try: "):
        compression.load_state_dict({"prune": [1], "quantize": {}})
