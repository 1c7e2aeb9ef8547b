import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from torch import nn

from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.step import Prune
from cellvision.errors import ConfigError
from compressed_fit import fit

pytestmark = pytest.mark.filterwarnings("ignore")

CONF = Path(__file__).parents[3] / "conf"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            r"prune has no target; need one of ratio, macs, parameters, latency_ms, or masks; try: .*macs=0\.5",
        ),
        ({"ratio": 0.5, "macs": 0.5}, r"prune has ratio=0\.5 and macs=0\.5"),
        ({"macs": 1.0}, r"prune\.macs=1\.0; need a share in \(0, 1\)"),
        ({"ratio": 0.5, "max_ratio": 0}, r"prune\.max_ratio=0;"),
        ({"ratio": 0.5, "tolerance": 2}, r"prune\.tolerance=2;"),
        ({"ratio": 0.5, "steps": 0}, r"prune\.steps=0; need a whole number from 1 to 1000000"),
        ({"ratio": 0.5, "round_to": 0}, r"prune\.round_to=0;"),
        ({"ratio": 0.5, "importance": "l1"}, "unknown compress.prune.importance 'l1'"),
        ({"ratio": 0.5, "scope": "all"}, "unknown compress.prune.scope 'all'"),
        ({"ratio": 0.5, "masks": "1:2"}, "unknown compress.prune.masks '1:2'"),
        ({"masks": "unstructured", "sparsity": 1.5}, r"compress\.prune\.sparsity=1\.5; need a share"),
        ({"ratio": 0.5, "schedule": "cosine"}, "unknown compress.prune.schedule 'cosine'"),
    ],
)
def test_options_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        PruneOptions(**given)


SHARE, WHOLE, LIST = r"a share in \(0, 1\)", "a whole number from {} to {}", "a list of names or patterns of layers"
NEEDS = {
    **dict.fromkeys(["ratio", "macs", "parameters", "max_ratio", "tolerance", "sparsity"], SHARE),
    **dict.fromkeys(["epochs", "steps", "round_to", "every", "batches"], WHOLE.format(1, 10**6)),
    "sparse_epochs": WHOLE.format(0, 10**6),
    "latency_px": WHOLE.format(32, 8192),
    "latency_ms": "a time above 0 ms",
    "sparse_strength": "a number from 0 to 100",
    "lr": "a share of optim.lr above 0, up to 10",
}


@pytest.mark.parametrize("value", ["abc", True, float("nan"), float("inf"), -1, [1]])
@pytest.mark.parametrize("key", NEEDS)
def test_what_is_no_number_is_refused_with_its_key(key, value):
    target = {} if key in ("ratio", "parameters", "latency_ms") else {"macs": 0.5}
    with pytest.raises(ConfigError) as caught:
        Prune(**{"epochs": 4, **target, key: value})
    assert re.fullmatch(
        rf"compress\.prune\.{key}={re.escape(repr(value))}; need {NEEDS[key]}; try: .*", str(caught.value)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(({key: 64.5}, rf"prune\.{key}=64\.5; need {need}") for key, need in NEEDS.items() if "whole" in need),
        *(({key: 10**20}, rf"prune\.{key}=10+; need {need}") for key, need in NEEDS.items() if "whole" in need),
        ({"steps": 10**6, "epochs": 10**6, "every": 2}, r"need 1999999 epochs or more; try: compress\.prune\.steps=5"),
        ({"sensitivity": "maybe"}, r"prune\.sensitivity='maybe'; need true or false"),
        ({"sensitivity": 1}, r"prune\.sensitivity=1; need true or false"),
        ({"protected": "abc"}, rf"prune\.protected='abc'; need {LIST}; try: compress\.prune\.protected=\[abc\]"),
        ({"protected": None}, rf"prune\.protected=None; need {LIST}"),
        ({"protected": ["stem", 1]}, rf"prune\.protected=\['stem', 1\]; need {LIST}"),
    ],
)
def test_settings_of_another_kind_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Prune(**{"epochs": 99, "macs": 0.5, **given})


def test_patterns_are_kept_as_they_are():
    assert Prune(epochs=1, macs=0.5, protected=["stem", "decoder.*"]).options.protected == ("stem", "decoder.*")
    assert PruneOptions(macs=0.5, protected=["stem"]).protected == ("stem",)


@pytest.mark.parametrize("target", [{"ratio": 0.3}, {"masks": "unstructured"}])
def test_patterns_that_fit_no_layer_are_refused_before_anything_is_trained(tmp_path, target):
    message = (
        r"prune\.protected has 'decodr\.\*', which fits no layer; need .* such as .*; try: .*=\[encoder\.\*,decoder\."
    )
    with pytest.raises(ConfigError, match=message) as caught:
        fit(tmp_path, [Prune(epochs=1, **target, protected=["encoder.*", "decodr.*"])])
    _, _, hint = str(caught.value).partition("; try: compress.prune.protected=")
    fit(tmp_path, [Prune(epochs=1, batches=1, **target, protected=hint[1:-1].split(","))])


def test_a_normalisation_can_be_named_for_the_channels_it_holds(tmp_path):
    given = {"ratio": 0.3, "masks": "unstructured", "batches": 1}
    task, _, _ = fit(tmp_path, [Prune(epochs=1, **given, protected=["encoder.levels.0.0.1"])])
    assert isinstance(task.net.encoder.levels[0][0][1], nn.BatchNorm2d)
    assert len(task.net.encoder.levels[0][0][1].weight) == 8


@pytest.mark.parametrize(
    ("schedule", "shares"), [("linear", [0, 0.25, 0.5, 0.75, 1]), ("cubic", [0, 0.578, 0.875, 0.984, 1])]
)
def test_a_schedule_begins_at_nothing_and_ends_at_all(schedule, shares):
    options = PruneOptions(parameters=0.5, steps=4, schedule=schedule)
    assert [round(options.share_done(step), 3) for step in range(5)] == shares
    assert options.share_done(9) == 1


def test_masks_need_no_target():
    assert PruneOptions(masks="2:4").target == {}
    assert PruneOptions(masks="2:4", macs=0.4).target == {"macs": 0.4}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"masks": "3:4"},
        {"ratio": 2},
        {"masks": "2:4", "sparsity": 0},
        {"macs": 0.5, "steps": 0},
        {"macs": 0.5, "latency_ms": 3},
        {"latency_ms": 0},
        {"macs": 0.5, "batches": 0},
        {"macs": 0.5, "latency_px": 8},
        {"macs": 0.5, "steps": 9},
        {"macs": 0.5, "importance": "bn_scale"},
        {"macs": 0.5, "epochs": 0},
        {"macs": 0.5, "lr": 0},
        {"macs": 0.5, "round_to": 4.5},
        {"macs": 0.5, "latency_px": "abc"},
        {"macs": 0.5, "sparse_strength": -1},
        {"macs": 0.5, "sensitivity": "maybe"},
        {"macs": 0.5, "protected": "abc"},
        {"macs": 0.5, "protected": "encoder.*,decoder.0.*"},
    ],
)
def test_what_an_error_proposes_can_be_typed(given):
    """As it stands behind ``python compress.py``; the name of a choice, behind its key."""
    with pytest.raises(ConfigError) as caught:
        Prune(**{"epochs": 4, **given})
    said, _, hint = str(caught.value).partition("; try: ")
    if hint.startswith("'"):
        hint = said.split()[1] + "=" + hint
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("compress", overrides=hint.split())
    assert cfg.compress.prune.epochs
