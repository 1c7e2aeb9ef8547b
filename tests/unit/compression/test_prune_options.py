from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.step import Prune
from cellvision.errors import ConfigError

CONF = Path(__file__).parents[3] / "conf"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"prune has no target; need one of ratio, macs, parameters; try: compress\.prune\.macs=0\.5"),
        ({"ratio": 0.5, "macs": 0.5}, r"prune has ratio=0\.5 and macs=0\.5"),
        ({"macs": 1.0}, r"prune\.macs=1\.0; need a share in \(0, 1\)"),
        ({"ratio": 0.5, "max_ratio": 0}, r"prune\.max_ratio=0;"),
        ({"ratio": 0.5, "tolerance": 2}, r"prune\.tolerance=2;"),
        ({"ratio": 0.5, "steps": 0}, r"prune\.steps=0; need a whole number from 1 up"),
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
