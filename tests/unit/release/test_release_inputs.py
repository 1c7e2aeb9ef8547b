"""Files that settings name: which of them count, and that a change of their contents is seen."""

import importlib.util
import json
import sys

import hydra
import pytest

from cellvision.release import steps
from cellvision.release.inputs import find_inputs, hash_folder
from forked import ROOT


@pytest.fixture
def find_keys(tmp_path, monkeypatch):
    """Keys of the steps before the bundle that ``pipeline.py`` would run with some settings; nothing is run."""
    spec = importlib.util.spec_from_file_location("pipeline_script", ROOT / "pipeline.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    keys = {}

    def note(chain, folder, **_):
        for step in (step for step in chain if step.command[0] == "python"):
            for path in step.inputs:
                if path.name == "best.ckpt":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
            keys[step.name] = steps.compute_key(step, folder)

    monkeypatch.setattr(steps, "run_steps", note)

    def find(**settings):
        words = [f"settings.{name}={json.dumps(words)}" for name, words in settings.items()]
        words += [f"folder={tmp_path / 'run'}", f"models={tmp_path / 'models'}"]
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            script.run(hydra.compose("pipeline", overrides=words))
        return dict(keys)

    return find


@pytest.fixture
def file(tmp_path):
    """One in a folder whose name needs quotes."""
    (tmp_path / "d (1)").mkdir()
    (tmp_path / "d (1)" / "a.pt").write_bytes(b"1")
    return tmp_path / "d (1)" / "a.pt"


NETS = ("data=synthetic_cells", "model=centermask2_lite")
CASES = [
    ("data", ("data=livedead", "data.root='{file.parent}'"), ["prepare", "train"]),
    ("train", (*NETS, "model.weights='{file}'"), ["train"]),
    ("compress", ("compress=[distill]", "compress.distill.teacher='{file}'"), ["compress"]),
    ("export", ("data.root='{file.parent}'",), ["export"]),
]


@pytest.mark.parametrize(("name", "words", "changed"), CASES)
def test_what_settings_name_counts(find_keys, file, name, words, changed):
    settings = {"train": [], "compress": [], name: [word.format(file=file) for word in words]}
    before = find_keys(**settings)
    assert find_keys(**settings) == before
    file.write_bytes(b"2")
    now = find_keys(**settings)
    assert [step for step in now if now[step] != before[step]] == changed


def test_what_a_configuration_goes_on_from_counts(find_keys, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "mine.yaml").write_text('_BASE_: "deep/Base.yaml"\nMODEL: {}\n')
    (tmp_path / "deep" / "Base.yaml").write_text('"_BASE_": [../first.yaml, more.yaml] # of all\n')
    (tmp_path / "deep" / "more.yaml").write_text("- no\n- settings\n")
    (tmp_path / "first.yaml").write_text("_BASE_: mine.yaml\n")  # round and round
    found = find_inputs({"train": {"model": {"config_file": str(tmp_path / "mine.yaml")}}}, tmp_path / "run")
    assert {path.resolve().name for path in found["train"]} == {"mine.yaml", "Base.yaml", "first.yaml", "more.yaml"}


def test_words_are_no_paths_where_a_folder_of_that_name_happens_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "wells", "error"):
        (tmp_path / name).mkdir()
    settings = {
        "data": {"root": "wells", "train": {"split": "train", "faulty_cells": "error", "repeated_images": "error"}}
    }
    assert find_inputs({"train": settings}, tmp_path / "run") == {"train": (tmp_path / "wells",)}


def test_files_of_the_run_and_of_its_loggers_are_no_inputs(tmp_path, monkeypatch):
    run = tmp_path / "run"
    for place in ("run/validation", "logs", "wells/images", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "times").touch()
    monkeypatch.chdir(tmp_path)
    settings = {
        "folder": str(run / "validation"),
        "logger": {"csv": {"save_dir": str(tmp_path / "logs")}},
        "trt": {"timing_cache": str(tmp_path / "times")},
        "data": {"root": "wells", "images": ["wells/images", "none", "", 3, None, "\0", "a" * 5000]},
        "extra_file": "elsewhere",
    }
    assert find_inputs({"train": settings}, run) == {"train": (tmp_path / "elsewhere", tmp_path / "wells")}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_what_links_lead_to_counts_and_none_leads_in_circles(tmp_path):
    root, real, run = (tmp_path / name for name in ("root", "real", "root/run"))
    for folder in (root, real, run, real / "deeper", real / "__pycache__"):
        folder.mkdir()
    (real / "deeper" / "a").write_text("1")
    (real / "__pycache__" / "b").write_text("1")
    (run / "made").write_text("1")
    for place, target in ((root / "images", real), (real / "back", root), (real / "self", real)):
        place.symlink_to(target)
    (root / "broken").symlink_to(tmp_path / "none")
    before = hash_folder(root, without=run)
    assert [path for path, _ in before] == ["images/deeper/a"]
    (run / "made").write_text("2")
    assert hash_folder(root, without=run) == before
    (real / "deeper" / "a").write_text("2")
    assert hash_folder(root, without=run) != before
