"""What a model's tags say, whoever has written them."""

from dataclasses import replace
from pathlib import Path

import pytest

from cellvision.cloud.registry import from_tags, to_tags
from cellvision.release.gate import GateError, check_still_passes
from cellvision.release.record import Gate, ModelVersion, Scores

SCORES = Scores(values={"cell/f1": 0.8, "pixel/miou": 0.7}, data_fingerprint="f", images=3, graph_sha256="a")
GATE = Gate(metric="cell/f1", value=0.8, at_least=0.5, production=1, production_value=0.7)
VERSION = ModelVersion(
    name="cells",
    version=2,
    folder=Path("azureml:cells:2"),
    created="2026-01-01",
    files={},
    scores=SCORES,
    gate=GATE,
    tags={"graphs": "a", "plate": "A1"},
)


@pytest.mark.parametrize("change", [{}, {"gate": None}, {"scores": None, "gate": None}])
@pytest.mark.parametrize("gate", [GATE, Gate(metric="cell/f1", value=0.8)])
def test_what_was_written_is_read(change, gate):
    version = replace(VERSION, **({"gate": gate} | change))
    tags = to_tags(version)
    assert from_tags("cells", 2, tags) == replace(version, tags=tags)


@pytest.mark.parametrize("name", ["mask/ap_0.5", "mask/ap_class_neg.ctrl", "a/b.c/d~e", "f1"])
def test_scores_keep_their_names(name):
    version = replace(VERSION, scores=replace(SCORES, values={name: 0.8}))
    tags = to_tags(version)
    assert not any("/" in key for key in tags)
    assert from_tags("cells", 2, tags).scores.values == {name: 0.8}


@pytest.mark.parametrize(
    "change",
    [
        {"images": "many"}, {"images": None}, {"images": "-3"}, {"images": "9" * 5000}, {"fields": None},
        {"scored": None}, {"score.cell.f1": "good", "score.pixel.miou": "nan"},
    ],
)  # fmt: skip
def test_damaged_scores_are_none(change):
    found = from_tags("cells", 2, to_tags(VERSION) | change)
    assert (found.scores, found.gate) == (None, GATE)
    with pytest.raises(GateError, match="cells version 2, which was registered without a gate"):
        check_still_passes(found, None)


@pytest.mark.parametrize(
    "change",
    [
        {"gate.value": "high"}, {"gate.value": None}, {"gate.at_least": "nan"}, {"gate.production": "one"},
        {"gate.production_value": ""}, {"gate.production": None}, {"gate.production_value": None},
        {"gate.metric": None}, {"gate.metric": ""},
    ],
)  # fmt: skip
def test_a_damaged_gate_is_none(change):
    found = from_tags("cells", 2, to_tags(VERSION) | change)
    assert (found.scores, found.gate) == (SCORES, None)


def test_a_damaged_score_leaves_the_others():
    found = from_tags(
        "cells", 2, to_tags(VERSION) | {"score.cell.f2": "good", "score.cell.f1": "inf", "gate.more": "x"}
    )
    assert found.scores.values == {"pixel/miou": 0.7}
    assert found.gate == GATE


@pytest.mark.parametrize("tags", [{"fields": "48"}, {"gate.metric": "cell/f1"}, {"score.cell.f2": "good"}, {}])
def test_tags_of_a_model_that_was_registered_by_other_means(tags):
    found = from_tags("cells", 1, tags)
    assert (found.scores, found.gate, found.tags) == (None, None, tags)
