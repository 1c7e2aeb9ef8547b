"""Schedules against torch's own; bad settings against their messages."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, PolynomialLR, ReduceLROnPlateau

from cellvision.errors import ConfigError
from cellvision.training.optim import SCHEDULES, Optim, compute_lr_factor


def build(optim: Optim, steps: int):
    optimizer = optim.build_optimizer(nn.Conv2d(1, 1, 3))
    return optimizer, optim.build_schedules(optimizer, total_steps=steps, monitor="val/loss", mode="min")


def trace(optimizer, scheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "oracle"),
    [
        ("cosine", lambda o, n: CosineAnnealingLR(o, T_max=n)),
        ("polynomial", lambda o, n: PolynomialLR(o, total_iters=n, power=0.9)),
        ("steps", lambda o, n: MultiStepLR(o, milestones=[14, 18], gamma=0.5)),
    ],
)
def test_schedules_equal_those_of_torch(schedule, oracle):
    mine, records = build(Optim(schedule=schedule, warmup=0.0, milestones=(0.7, 0.9)), 20)
    ours = trace(mine, records[0]["scheduler"], 20)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    assert ours == pytest.approx(trace(optimizer, oracle(optimizer, 20), 20), rel=1e-6)


def test_warm_restarts_return_to_the_peak_at_each_cycle():
    optim = Optim(schedule="warm_restarts", cycles=4)
    factors = [compute_lr_factor(optim, step, 0, 40) for step in range(41)]
    assert [factors[i] for i in (0, 10, 20, 30)] == pytest.approx([1.0] * 4)
    assert factors[9] < 0.1
    assert factors[40] == pytest.approx(0.0)


def test_cyclic_is_a_triangle():
    optim = Optim(schedule="cyclic", cycles=2, floor=0.1)
    factors = [compute_lr_factor(optim, step, 0, 40) for step in range(40)]
    assert factors[0] == pytest.approx(1.0)
    assert factors[10] == pytest.approx(0.1)
    assert factors[20] == pytest.approx(1.0)
    assert factors[5] == pytest.approx(factors[15]) == pytest.approx(0.55)


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != "plateau"])
def test_warmup_rises_from_a_hundredth(schedule):
    optim = Optim(schedule=schedule, warmup=0.5)
    assert compute_lr_factor(optim, 0, 10, 20) == pytest.approx(0.01)
    assert compute_lr_factor(optim, 5, 10, 20) == pytest.approx(0.505)
    assert compute_lr_factor(optim, 10, 10, 20) == pytest.approx(1.0)


def test_plateau_keeps_its_reduction_through_and_after_warmup():
    optimizer, (rise, plateau) = build(Optim(schedule="plateau", warmup=0.5, factor=0.5, patience=0), 20)
    assert isinstance(plateau["scheduler"], ReduceLROnPlateau)
    for step in range(20):
        optimizer.step()
        rise["scheduler"].step()
        if step in (14, 15):
            plateau["scheduler"].step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5e-3)


def test_the_learning_rate_follows_the_batch_of_all_devices():
    assert Optim(lr=0.01, reference_batch=16).scale_lr(64).lr == pytest.approx(0.04)
    assert Optim(lr=0.01).scale_lr(64).lr == 0.01
    assert Optim(lr=0.01, reference_batch=16).with_lr(0.5).scale_lr(64).lr == 0.5


def test_norms_and_biases_are_spared_from_weight_decay():
    optimizer = Optim(weight_decay=0.1).build_optimizer(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    decayed, spared = optimizer.param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert decayed["weight_decay"] == 0.1
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert spared["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"schedule": "cosin"}, r"optim.schedule 'cosin'; need one of: .*plateau.*; try: 'cosine'"),
        ({"name": "adam"}, r"optim.name 'adam'.*adamw, sgd"),
        ({"lr": 0.0}, r"optim.lr=0.0; need a number above 0"),
        ({"lr": "fast"}, r"optim.lr=fast; need a number; try: optim.lr=0.001"),
        ({"warmup": 1.0}, r"optim.warmup=1.0; need a share in \[0, 1\)"),
        ({"cycles": 0}, r"optim.cycles=0"),
        ({"factor": 1.5}, r"optim.factor=1.5"),
        ({"floor": -1.0}, r"optim.floor=-1.0"),
        ({"reference_batch": 0}, r"optim.reference_batch=0; need a number from 1 up"),
        ({"milestones": (0.9, 0.7)}, r"optim.milestones=\(0.9, 0.7\); need rising shares"),
        ({"weight_decay": -1.0}, r"optim.weight_decay=-1.0"),
    ],
)
def test_bad_settings_are_explained(setting, said):
    with pytest.raises(ConfigError, match=said):
        Optim(**setting)
