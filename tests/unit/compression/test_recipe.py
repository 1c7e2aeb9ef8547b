"""Which steps can follow each other, and the phases that they make."""

import pytest

from cellvision.compression.recipe import check_order, plan_phases
from cellvision.compression.step import Step
from cellvision.errors import ConfigError
from cellvision.training.phases import Phase, find_phase


def make(name: str, *, epochs: int = 2, lr: float = 0.5) -> Step:
    step = type(name, (Step,), {"name": name, "key": name})
    return step(epochs=epochs, lr=lr)


def test_the_usual_orders_are_fine():
    for names in (["prune", "distill", "quantize"], ["quantize"], ["distill"], ["prune", "quantize"]):
        check_order([make(name) for name in names])
    check_order([make("distill"), make("quantize")], [{"step": "prune"}])
    check_order([make("prune")], [{"step": "prune"}, {"step": "distill"}])


@pytest.mark.parametrize(
    ("names", "before", "message"),
    [
        ([], [], "no step of compression"),
        (["quantize", "prune"], [], r"prune after quantize: what was learned of rounding.*compress=\[prune,quantize\]"),
        (["quantize", "distill"], [], "distill after quantize: a net that rounds"),
        (["prune", "prune"], [], "prune twice in one run"),
        (["prune"], ["quantize"], "prune after quantize: the checkpoint's net was quantised already"),
        (["quantize"], ["prune", "quantize"], "quantize after quantize"),
    ],
)
def test_other_orders_explain_themselves(names, before, message):
    with pytest.raises(ConfigError, match=message):
        check_order([make(name) for name in names], [{"step": name} for name in before])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"epochs": value}, rf"prune\.epochs={value!r}; need a whole number from 1 to")
            for value in (0, 1.5, "a", True, 10**400)
        ),
        *(({"lr": value}, rf"prune\.lr={value!r}; need a share of") for value in (0, "a", True, float("nan"), None)),
    ],
)
def test_a_step_has_epochs_and_a_learning_rate(settings, message):
    with pytest.raises(ConfigError, match=message):
        make("prune", **settings)


def test_phases_follow_training():
    phases = plan_phases([make("prune", epochs=3), make("distill", epochs=1, lr=0.2)], base_epochs=4)
    assert phases == (
        Phase(name="base", epochs=4),
        Phase(name="prune", epochs=3, lr=0.5),
        Phase(name="distill", epochs=1, lr=0.2),
    )
    found = [(phase.name, at) for phase, at in (find_phase(phases, epoch) for epoch in (0, 3, 4, 6, 7, 9))]
    assert found == [("base", 0), ("base", 3), ("prune", 0), ("prune", 2), ("distill", 0), ("distill", 2)]
    assert [phase.name for phase in plan_phases([make("prune")])] == ["prune"]
