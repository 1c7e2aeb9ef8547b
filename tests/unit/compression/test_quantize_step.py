"""A net that learns to round while it is trained: ranges, phases of the training, and what is kept."""

import json

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from cellvision.compression.qat.step import Quantize, compute_points
from cellvision.errors import ConfigError
from cellvision.export.latency_probe import measure_graph_ms
from cellvision.models.structure.fake_quant import find_fake_quants, is_rounding
from cellvision.models.structure.rounded_layers import ROUNDED
from cellvision.training.checkpoint import load_net
from compressed_fit import build_data, fit

pytestmark = pytest.mark.filterwarnings("ignore")


class Watch(Callback):
    """Notes ranges and statistics at the end of each epoch, and whether normalisations follow the batches."""

    def __init__(self):
        self.bounds, self.means, self.modes = [], [], []

    def on_train_epoch_end(self, trainer, pl_module):
        norms = [module for module in pl_module.net.modules() if isinstance(module, nn.BatchNorm2d)]
        self.bounds.append([quant.step.item() * quant.levels[1] for quant in find_fake_quants(pl_module.net)])
        self.means.append([norm.running_mean.sum().item() for norm in norms])
        self.modes.append({norm.training for norm in norms})


class Keep(Callback):
    """Saves a checkpoint at the end of an epoch, as ``callbacks.last`` does."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/first.ckpt")


def test_ranges_follow_the_batches_and_stay_in_the_last_epochs(tmp_path):
    watch = Watch()
    task, _, _ = fit(tmp_path, [Quantize(epochs=4, freeze_epochs=2, when="always", calibration_batches=2)], watch)
    first, second, third, last = watch.bounds
    assert len(first) == 8
    assert min(first) > 0
    assert first != second
    assert second == third == last
    assert watch.means[1] == watch.means[2] == watch.means[3] != watch.means[0]
    assert watch.modes[2:] == [{False}, {False}]
    (record,) = task.record.recipe
    assert record["step"] == "quantize"
    assert record["trained"]
    json.dumps(record)


def test_a_checkpoint_gives_the_rounding_net_again(tmp_path):
    task, _, _ = fit(tmp_path, [Quantize(epochs=1, when="always", calibration_batches=1)])
    net, record = load_net(tmp_path / "checkpoints" / "quantize.ckpt")
    assert is_rounding(net)
    assert record.recipe == task.record.recipe
    images = torch.rand(1, 3, 32, 32) * 255
    with torch.no_grad():
        assert torch.equal(net(images)["probabilities"], task.net.eval()(images)["probabilities"])


@pytest.mark.parametrize("learned", [False, True])
def test_a_run_resumed_within_the_phase_ends_as_an_unbroken_one(tmp_path, learned):
    given = {"epochs": 3, "freeze_epochs": 1, "when": "always", "calibration_batches": 1, "learned": learned}
    unbroken, _, _ = fit(tmp_path / "a", [Quantize(**given)], Keep())
    resumed, _, _ = fit(tmp_path / "b", [Quantize(**given)], resume=str(tmp_path / "a" / "first.ckpt"))
    for (name, one), other in zip(unbroken.net.state_dict().items(), resumed.net.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_learned_ranges_are_trained_until_they_are_fixed(tmp_path):
    watch = Watch()
    fit(tmp_path, [Quantize(epochs=3, freeze_epochs=1, when="always", calibration_batches=1, learned=True)], watch)
    first, second, third = watch.bounds
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert second == third


def test_a_percentile_keeps_smaller_ranges(tmp_path):
    bounds = []
    for options in ({}, {"calibration": "percentile", "percentile": 90.0}):
        given = {"epochs": 1, "tolerance_points": 100, "calibration_batches": 1} | options
        task, _, _ = fit(tmp_path, [Quantize(**given)])
        bounds.append([quant.bound.item() for quant in find_fake_quants(task.net)])
    assert all(0 < less < most for most, less in zip(*bounds, strict=True))


def test_where_little_is_lost_nothing_is_trained(tmp_path, capsys):
    watch = Watch()
    task, trainer, _ = fit(tmp_path, [Quantize(epochs=3, tolerance_points=100, calibration_batches=2)], watch)
    assert "no training needed" in capsys.readouterr().out
    assert trainer.global_step == 0
    (record,) = task.record.recipe
    assert not record["trained"]
    assert record["lost_points"] <= 100
    net, _ = load_net(tmp_path / "checkpoints" / "quantize.ckpt")
    assert is_rounding(net)


@pytest.mark.parametrize(("rounded", "is_kept"), [(0.0, False), (2.0, True)])
def test_rounding_alone_is_kept_unless_an_epoch_is_better(tmp_path, monkeypatch, capsys, rounded, is_kept):
    monkeypatch.setattr("cellvision.compression.run.Run.score", lambda run, net=None: rounded)
    step = Quantize(epochs=2, freeze_epochs=1, when="always", calibration_batches=1)
    _, trainer, best = fit(tmp_path, [step])
    assert ("no epoch of training was better" in capsys.readouterr().out) == is_kept
    kept = torch.load(tmp_path / "checkpoints" / "quantize.ckpt", weights_only=True)
    assert (kept["global_step"] == 0) == is_kept
    assert trainer.global_step > 0
    assert (best.score == rounded) == is_kept
    net, record = load_net(tmp_path / "checkpoints" / "quantize.ckpt")
    assert record.recipe[-1]["trained"] is not is_kept
    assert is_rounding(net)
    assert all(quant.bound > 0 for quant in find_fake_quants(net))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_epochs_that_change_nothing_are_no_better_than_rounding_alone(tmp_path, precision):
    step = Quantize(epochs=2, freeze_epochs=2, lr=1e-12, when="always", calibration_batches=1)
    start = tmp_path / "base" / "checkpoints" / "base.ckpt"
    data = build_data(fields=12, crop=64)
    fit(tmp_path / "base", [Quantize(epochs=1)], data=data, base_epochs=14, precision=precision)
    task, trainer, _ = fit(tmp_path, [step], data=data, start=start, precision=precision)
    assert float(trainer.callback_metrics[task.monitor]) == task.record.recipe[-1]["score_rounded"]
    assert not load_net(tmp_path / "checkpoints" / "quantize.ckpt")[1].recipe[-1]["trained"]


def test_layers_that_cost_most_stay_float_until_the_budget_is_met(tmp_path, monkeypatch):
    costly = "decoder.0.convolve.0"

    def score(run, net=None):
        rounded = run.net.get_submodule(costly)
        return 0.5 if type(rounded).__name__ == "QuantConv2d" else 0.9

    monkeypatch.setattr("cellvision.compression.run.Run.score", score)
    step = Quantize(epochs=1, calibration_batches=1, budget_points=1.0, tolerance_points=1.0)
    task, _, _ = fit(tmp_path, [step])
    (record,) = task.record.recipe
    assert record["mixed"]["kept"] == [costly]
    assert record["mixed"]["met"]
    assert 0 < record["mixed"]["float_macs"] < 1
    assert costly not in record["plan"]["layers"]
    found = json.loads((tmp_path / "sensitivity_quantize.json").read_text())
    assert found["layers"][0]["layer"] == costly
    assert (tmp_path / "sensitivity_quantize.png").stat().st_size > 5000


def test_layers_stay_float_as_the_time_allows(tmp_path, capsys):
    """Timed is the net that rounds, but for the layers kept, as it is called for."""
    seen = []

    def measure(net, image, cells):
        assert cells is None
        assert tuple(image.shape) == (1, 3, 32, 32)
        rounded = sum(type(module) in ROUNDED.values() for module in net.modules())
        seen.append((is_rounding(net), rounded))
        return 10.0 - rounded

    step = Quantize(epochs=1, calibration_batches=1, budget_ms=6.5, tolerance_points=100)
    task, _, _ = fit(tmp_path, [step], measure_ms=measure)
    (record,) = task.record.recipe
    mixed = record["mixed"]
    assert all(rounds for rounds, _ in seen)
    assert [one["latency_ms"] for one in mixed["tried"]] == [10.0 - rounded for _, rounded in seen]
    assert mixed["budget"] == {"points": None, "latency_ms": 6.5}
    assert mixed["chosen"]["latency_ms"] == 10.0 - len(record["plan"]["layers"]) <= 6.5
    assert not set(mixed["kept"]) & set(record["plan"]["layers"])
    printed = capsys.readouterr().out
    assert f"quantize  {len(mixed['kept'])} layers stay float: " in printed
    assert " ms of 6.5 allowed" in printed


def test_a_time_in_onnx_runtime_is_kept_to(tmp_path, capsys):
    """Really exported and timed; what no net on any machine takes, and what none can be within."""
    step = Quantize(epochs=1, calibration_batches=1, budget_ms=60_000, budget_points=100, tolerance_points=100)
    task, _, _ = fit(tmp_path, [step], measure_ms=measure_graph_ms)
    (record,) = task.record.recipe
    assert 0 < record["mixed"]["chosen"]["latency_ms"] < 60_000
    assert "layers rounded: " in capsys.readouterr().out
    step = Quantize(epochs=1, calibration_batches=1, budget_ms=1e-6)
    with pytest.raises(ConfigError, match=r"budget_ms=1e-06, and with all layers rounded it is .* ms; need at least"):
        fit(tmp_path / "other", [step], measure_ms=measure_graph_ms)


def test_a_time_needs_a_run_that_can_measure(tmp_path):
    with pytest.raises(ConfigError, match="a latency to be met; need a run that can measure"):
        fit(tmp_path, [Quantize(epochs=1, calibration_batches=1, budget_ms=5)])


COUNTS = [
    (key, low, value)
    for key, low in (("calibration_batches", 1), ("freeze_epochs", 0))
    for value in ("abc", True, 1.5, -1, None)
]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"when": "never"}, "qat.when 'never'"),
        ({"sensitivity": "all"}, "qat.sensitivity 'all'"),
        ({"tolerance_points": -1}, "qat.tolerance_points=-1"),
        ({"budget_points": float("nan")}, "qat.budget_points=nan"),
        ({"budget_ms": 0}, "qat.budget_ms=0; need null, or a time in ms above 0"),
        ({"budget_ms": -1.5}, "qat.budget_ms=-1.5"),
        ({"budget_ms": float("nan")}, "qat.budget_ms=nan"),
        ({"budget_ms": float("inf")}, "qat.budget_ms=inf"),
        ({"budget_ms": "abc"}, "qat.budget_ms='abc'"),
        ({"budget_ms": True}, "qat.budget_ms=True"),
        ({"calibration": "max"}, "qat.calibration 'max'"),
        ({"percentile": 50}, "qat.percentile=50; need a percentile above 50 up to 100"),
        ({"calibration_batches": 0}, "qat.calibration_batches=0"),
        ({"freeze_epochs": 3}, "qat.freeze_epochs=3; need 0 to compress.qat.epochs=2"),
        ({"tolerance_points": None}, "qat.tolerance_points=None; need points of the monitored score, from 0 up"),
        ({"budget_points": "abc"}, "qat.budget_points='abc'; need points of the monitored score, from 0 up"),
        *(({"percentile": value}, f"qat.percentile={value!r}; need a percentile") for value in ("abc", True)),
        *((({key: value}), f"qat.{key}={value!r}; need a whole number from {low} ") for key, low, value in COUNTS),
        *(({"learned": value}, f"qat.learned={value!r}; need true or false") for value in ("maybe", 1, None)),
        ({"keep_float": "nope"}, r"qat.keep_float='nope'; need a list of names .*; try: .*qat.keep_float=\[nope\]"),
        ({"keep_float": [1]}, r"qat.keep_float=\[1\]; need a list of names or patterns of layers"),
        ({"keep_float": None}, "qat.keep_float=None; need a list of names or patterns of layers"),
    ],
)
def test_settings_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        Quantize(epochs=2, **given)


def test_unknown_layers_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match=r"compress\.qat\.keep_float has 'nose', which fits no layer"):
        fit(tmp_path, [Quantize(epochs=1, keep_float=["nose"])])


@pytest.mark.parametrize(
    ("monitor", "mode", "before", "after", "points"),
    [
        ("val/mask/ap", "max", 0.5, 0.48, 2.0),
        ("val/field/viability_error_pp", "min", 1.5, 2.0, 0.5),
        ("val/field/viability_bias_pp", "min", 1.5, 2.0, 0.5),
        ("val/loss", "min", 0.1, 0.12, 2.0),
    ],
)
def test_points(monitor, mode, before, after, points):
    assert compute_points(monitor, mode, before, after) == points
