"""Versions that never change, counted per name, and what decides about production."""

import json
import multiprocessing
import shutil
from dataclasses import replace

import pytest

from cellvision.bundle import load_manifest
from cellvision.errors import BundleError, ConfigError, DataError
from cellvision.release.deploy import find_live
from cellvision.release.draft import check_tags, describe_manifest
from cellvision.release.gate import Bar, GateError, check_still_passes, pass_gate
from cellvision.release.record import Scores, load_scores
from cellvision.release.registry import ModelRegistry
from stain_net import build_graph, write_bundle

BAR = Bar(metric="cell/f1", at_least=0.5)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two bundles of different graphs."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {"step": "prune"}, {"step": "quantize"}
    facts = {"recipe": made, "provenance": {"data_fingerprint": "d1", "git": {"commit": "abc", "changed": True}}}
    return [write_bundle(folder / str(i), build_graph(scale=1 + i / 10), **facts) for i in range(2)]


@pytest.fixture
def registry(tmp_path):
    return ModelRegistry(tmp_path / "models")


def give_scores(bundle, value, *, data="fields", **more):
    values = {"cell/f1": value, **more}
    graph = load_manifest(bundle).graphs[0].sha256
    return Scores(values=values, data_fingerprint=data, images=7, graph_sha256=graph)


def test_a_version_holds_all_that_was_given(registry, bundles):
    scores = give_scores(bundles[0], 0.8)
    version = registry.register(bundles[0], "cells", scores=scores, bar=BAR, tags={"plate": "A1"})
    assert (version.version, version.title) == (1, "cells version 1")
    found = registry.get("cells")
    assert found == version
    assert found.scores == scores
    assert found.gate.describe() == "cell/f1 0.8 (at least 0.5)"
    assert found.tags["graphs"] == scores.graph_sha256
    kept = {key: found.tags[key] for key in ("recipe", "training_data", "git", "plate", "precision")}
    assert kept == {
        "recipe": "prune,quantize", "training_data": "d1", "git": "abc with changes", "plate": "A1",
        "precision": "fp32",
    }  # fmt: skip
    assert load_manifest(found.bundle) == load_manifest(bundles[0])
    assert sorted(found.files) == ["manifest.json", "model.onnx"]
    assert [path.name for path in found.folder.parent.iterdir()] == ["1"]


def test_versions_are_counted_per_name(registry, bundles):
    numbers = [registry.register(bundles[i % 2], "a").version for i in range(12)]
    registry.register(bundles[0], "b")
    assert numbers == list(range(1, 13))
    assert [version.version for version in registry.list_versions("a")] == numbers
    assert registry.get("a").version == 12
    assert registry.list_names() == ["a", "b"]


def test_the_newest_is_not_registered_twice(registry, bundles):
    first = registry.register(bundles[0], "a")
    assert registry.register(bundles[0], "a") == first
    scored = registry.register(bundles[0], "a", scores=give_scores(bundles[0], 0.8), bar=BAR)
    assert scored.version == 2
    assert [path.name for path in sorted(registry.folder.glob("a/*"))] == ["1", "2"]


def register_some(folder, bundle, own):
    registry = ModelRegistry(folder)
    for i in range(5):
        registry.register(bundle, "a", tags={"who": own, "turn": str(i)})
        registry.register(bundle, "other", tags={"who": own})


def test_processes_that_register_at_once_get_versions_of_their_own(registry, bundles):
    context = multiprocessing.get_context("spawn")
    given = [(registry.folder, bundle, str(i)) for i, bundle in enumerate(bundles)]
    processes = [context.Process(target=register_some, args=each) for each in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    versions = registry.list_versions("a")
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    for bundle, own in zip(bundles, "01", strict=True):
        graphs = {version.tags["graphs"] for version in versions if version.tags["who"] == own}
        assert graphs == {load_manifest(bundle).graphs[0].sha256}
    for version in versions:
        registry.get("a", version.version)
    assert not list(registry.folder.rglob(".part-*"))


def test_an_altered_version_is_refused(registry, bundles):
    version = registry.register(bundles[0], "a")
    manifest = version.bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"live_threshold": 0.5', '"live_threshold": 0.1'))
    (version.bundle / "more.txt").touch()
    said = r"a version 1: manifest\.json, more\.txt changed since it was registered; need an unaltered bundle; try: "
    with pytest.raises(BundleError, match=said):
        registry.get("a")
    shutil.rmtree(version.bundle)
    with pytest.raises(BundleError, match=r"manifest\.json, model\.onnx changed"):
        registry.get("a", 1)


def test_what_there_is_not_is_listed(registry, bundles):
    registry.register(bundles[0], "cells")
    with pytest.raises(ConfigError, match="unknown model 'cels'; need one of: cells; try: 'cells'"):
        registry.get("cels")
    with pytest.raises(ConfigError, match="cells version 3; need one of 1; try: 1"):
        registry.get("cells", 3)
    with pytest.raises(ConfigError, match=r"unknown model 'x'; need one of: cells"):
        registry.list_versions("x")
    with pytest.raises(ConfigError, match=r"cells had no version in production before; need one to go back to; try: "):
        registry.find_previous("cells")


@pytest.mark.parametrize("name", ["", "../a", "a b", "a/b", ".a", "x" * 65])
def test_names_that_are_no_folder(registry, bundles, name):
    with pytest.raises(ConfigError, match=r"name .*; need letters, digits, _ and -, 64 at most; try: livedead"):
        registry.register(bundles[0], name)
    assert not registry.folder.exists()


def test_going_back_takes_the_way_back(registry, bundles):
    for i in range(3):
        registry.register(bundles[i % 2], "a")
        registry.set_production("a", i + 1)
    assert registry.find_production("a").version == 3
    assert registry.find_previous("a").version == 2
    registry.set_production("a", 2)
    assert registry.find_previous("a").version == 1
    registry.set_production("a", 2)  # again: a server that is started anew
    assert registry.find_previous("a").version == 1


def test_a_worse_bundle_is_not_registered(registry, bundles):
    better, worse = bundles
    registry.register(better, "a", scores=give_scores(better, 0.8), bar=BAR)
    registry.set_production("a", 1)
    said = "cell/f1 0.79, and a version 1, which is in production, has 0.8; need at least as much; try: keep that one"
    with pytest.raises(GateError, match=said):
        registry.register(worse, "a", scores=give_scores(worse, 0.79), bar=BAR)
    assert len(registry.list_versions("a")) == 1
    equal = registry.register(worse, "a", scores=give_scores(worse, 0.8), bar=BAR)
    assert equal.gate.describe() == "cell/f1 0.8 (at least 0.5; version 1 in production has 0.8)"


def test_too_low_is_refused_without_any_other(registry, bundles):
    with pytest.raises(GateError, match=r"cell/f1 0\.4; need at least 0\.5; try: train longer, or compress less"):
        registry.register(bundles[0], "a", scores=give_scores(bundles[0], 0.4), bar=BAR)
    assert registry.list_names() == []


def test_scores_of_other_fields_are_not_compared(registry, bundles):
    old, new = bundles
    registry.register(old, "a", scores=give_scores(old, 0.9), bar=BAR)
    registry.set_production("a", 1)
    scores = give_scores(new, 0.8, data="new fields")
    said = (
        "a version 1, which is in production, was scored on other fields; need scores of both on the same 7 fields; "
        "try: cellvision evaluate --bundle .*/a/1/bundle .. --json FILE, and cellvision register .. --production-scores"
    )
    with pytest.raises(GateError, match=said):
        registry.register(new, "a", scores=scores, bar=BAR)
    beside = give_scores(old, 0.85, data="new fields")
    with pytest.raises(GateError, match=r"0\.8, and a version 1, which is in production, has 0\.85"):
        registry.register(new, "a", scores=scores, bar=BAR, production_scores=beside)
    passed = registry.register(
        new, "a", scores=scores, bar=BAR, production_scores=replace(beside, values={"cell/f1": 0.7})
    )
    assert (passed.gate.production, passed.gate.production_value) == (1, 0.7)
    with pytest.raises(GateError, match="production scores of another bundle than a version 1; need those of"):
        registry.register(new, "a", scores=scores, bar=BAR, production_scores=give_scores(new, 0.1, data="new fields"))


def test_scores_of_another_bundle(registry, bundles):
    with pytest.raises(GateError, match=r"scores of another bundle; need those of .*; try: cellvision evaluate"):
        registry.register(bundles[0], "a", scores=give_scores(bundles[1], 0.9), bar=BAR)
    with pytest.raises(ConfigError, match="a metric without scores; need both; try: --scores FILE"):
        registry.register(bundles[0], "a", bar=BAR)


def test_metrics_that_cannot_decide(bundles):
    with pytest.raises(ConfigError, match="unknown metric 'cell/f2'; need one of: cell/f1; try: 'cell/f1'"):
        pass_gate(give_scores(bundles[0], 0.8), Bar(metric="cell/f2"), production=None)
    with pytest.raises(
        ConfigError, match="metric field/viability_error_pp, of which more is not better; need a score of"
    ):
        Bar(metric="field/viability_error_pp")


def test_production_may_have_changed_since(registry, bundles):
    one, two = bundles
    first = registry.register(one, "a", scores=give_scores(one, 0.7), bar=BAR)
    slow = registry.register(two, "a", scores=give_scores(two, 0.8), bar=BAR)
    fast = registry.register(one, "a", scores=give_scores(one, 0.9), bar=BAR)
    check_still_passes(slow, None)
    check_still_passes(slow, first)
    check_still_passes(slow, slow)
    with pytest.raises(GateError, match=r"cell/f1 0\.8, and a version 3, which is in production, has 0\.9"):
        check_still_passes(slow, fast)
    ungated = registry.register(two, "a")
    with pytest.raises(GateError, match="a version 4, which was registered without a gate; need one that has passed"):
        check_still_passes(ungated, None)


def test_scores_from_a_file(tmp_path):
    path = tmp_path / "scores.json"
    plain = {"graph_sha256": "a", "data": {"fingerprint": "f", "images": 2}, "scores": {"cell/f1": 0.5, "x": None}}
    path.write_text(json.dumps(plain))
    assert load_scores(path) == Scores(values={"cell/f1": 0.5}, data_fingerprint="f", images=2, graph_sha256="a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read (it is no JSON); need a file written by cellvision; try: check the path"),
        ("[]", "is no JSON object"),
        ('{"scores": {"a": 1}}', "is no scores of a bundle; need a file written by cellvision; try: cellvision eval"),
        ('{"scores": [], "data": {}}', "is no scores of a bundle"),
    ],
)
def test_files_that_are_no_scores(tmp_path, text, said):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(DataError) as refused:
        load_scores(path)
    assert f"{path} {said}" in str(refused.value)
    with pytest.raises(DataError, match=r"none\.json cannot be read \(No such file"):
        load_scores(tmp_path / "none.json")


@pytest.mark.parametrize("plain", [{"version": "two", "before": []}, {"version": 1}, {"version": 1, "before": "1"}])
def test_a_damaged_note_of_production_is_named(registry, bundles, plain):
    path = registry.register(bundles[0], "a").folder.with_name("production.json")
    path.write_text(json.dumps(plain))
    for read in (registry.find_production, registry.find_previous):
        with pytest.raises(DataError, match=r"production\.json does not say what is in production \(.*"):
            read("a")


@pytest.mark.parametrize("change", [{"pid": "x"}, {"pid": -1}, {"version": None}, {"colour": "blue"}])
def test_a_damaged_note_of_a_server_is_named(registry, bundles, change):
    path = registry.register(bundles[0], "a").folder.with_name("deployment.json")
    plain = {"name": "a", "version": 1, "url": "http://a", "port": 1, "pid": 2**22, "started": 0.5}
    path.write_text(json.dumps(plain))
    assert find_live(registry, "a") is None
    path.write_text(json.dumps(plain | change))
    with pytest.raises(DataError, match=r"deployment\.json does not say where the server is \(.*; try: remove it"):
        find_live(registry, "a")
    path.write_text('{"pid": 3}')
    with pytest.raises(DataError, match=r"deployment\.json does not say where the server is \('name'\)"):
        find_live(registry, "a")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "two"}, {"files": ["a"]}, {"files": 3}, {"tags": {"recipe": 3}}, {"scores": {"values": 1}},
        {"gate": {"metric": "cell/f1", "value": "high"}}, {"gate": "yes"}, {"name": None}, {"new": 1},
        {"scores": ""}, {"version": 7}, {"version": True},
        {"gate": {"metric": "cell/f1", "value": 0.8, "production": 1}},
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(registry, bundles, change):
    record = registry.register(bundles[0], "a").folder / "version.json"
    whole = record.read_text()
    assert registry.get("a").version == 1
    record.write_text(json.dumps(json.loads(whole) | change))
    with pytest.raises(DataError, match=r"version\.json is damaged \(.*; try: register the bundle again"):
        registry.get("a")


def test_scores_that_no_record_can_hold_are_refused(registry, bundles):
    scores = give_scores(bundles[0], 0.8, **{"cell/iou": float("nan")})
    said = (
        r"a record of a that could not be read again \(cell/iou of another kind\); need text, and scores that are fin"
    )
    with pytest.raises(ConfigError, match=said):
        registry.register(bundles[0], "a", scores=scores)
    assert not registry.folder.exists()


def test_a_record_that_cannot_be_read_again_does_not_get_its_name(registry, bundles, monkeypatch):
    registry.register(bundles[0], "a")
    monkeypatch.setattr("cellvision.release.registry.write_record", lambda _, folder: write_half(folder))
    with pytest.raises(DataError, match=r"version\.json cannot be read"):
        registry.register(bundles[1], "a")
    assert [path.name for path in (registry.folder / "a").iterdir()] == ["1"]


def write_half(folder):
    (folder / "version.json").write_text('{"name": ')


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), "high", True])
def test_a_bound_that_is_no_finite_number(bound):
    with pytest.raises(ConfigError, match=f"at_least={bound}; need a finite number; try: at_least=0.7"):
        Bar(metric="cell/f1", at_least=bound)


def test_the_registrys_own_tags_are_all_that_a_bundle_tells(bundles):
    manifest = load_manifest(bundles[0])
    full = replace(manifest, versions={"cellvision": "1"}, provenance=manifest.provenance | {"checkpoint_sha256": "c"})
    assert len(describe_manifest(full)) == 9
    for name in describe_manifest(full):
        with pytest.raises(ConfigError, match=f"tag {name}, which the registry sets itself"):
            check_tags([name])


def test_a_comparison_that_was_missing_makes_a_new_version(registry, bundles):
    """Both were registered before one of them went into production, each scored on fields of its own."""
    old, new = bundles[:2]
    registry.register(old, "a", scores=give_scores(old, 0.7, data="first"), bar=BAR)
    given = {"scores": give_scores(new, 0.8, data="second"), "bar": BAR}
    registry.register(new, "a", **given)
    registry.set_production("a", 1)
    with pytest.raises(GateError, match="scored on other fields"):
        check_still_passes(registry.get("a"), registry.find_production("a"))
    given["production_scores"] = give_scores(old, 0.6, data="second")
    assert registry.register(new, "a", **given).version == 3
    check_still_passes(registry.get("a"), registry.find_production("a"))
    assert registry.register(new, "a", **given).version == 3  # and is not made again
