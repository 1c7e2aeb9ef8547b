"""What is told of errors that are not ours."""

from __future__ import annotations

import errno
import os

import pytest
from omegaconf import OmegaConf

from cellvision import app, cli
from cellvision.building import find_data_settings
from cellvision.errors import ConfigError, read_first_line, to_sentence


@pytest.mark.parametrize(("number", "need"), [(errno.ENOSPC, "room on the disk"), (errno.EACCES, "a path that can be")])
def test_an_error_of_the_system_in_a_job_is_one_sentence(number, need, capsys):
    def job(cfg):
        raise OSError(number, os.strerror(number), "run/history.csv")

    with pytest.raises(SystemExit) as ended:
        app.run(job, OmegaConf.create({}))
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"error: run/history.csv: {os.strerror(number)}; need {need}")
    assert said.count("\n") == 1
    assert "; try: " in said


def test_an_error_of_the_system_in_a_verb_is_one_sentence(monkeypatch, capsys):
    def read(*given, **named):
        raise OSError(errno.ENOSPC, "No space left on device", "cells.csv")

    monkeypatch.setattr("cellvision.bundle.load_manifest", read)
    assert cli.main(["info", "bundle"]) == 2
    assert "cells.csv: No space left on device; need room on the disk; try: " in capsys.readouterr().err


def test_an_error_of_the_system_that_is_of_no_path_gives_no_advice_on_paths():
    said = to_sentence(OSError(errno.EMFILE, "Too many open files"))
    assert said.startswith("Too many open files; need a system that ")
    assert "path" not in said
    assert "; need a system that allows files so large; " in to_sentence(
        OSError(errno.EFBIG, "File too large", "a.ckpt")
    )
    assert to_sentence(OSError(errno.ENOSPC, "No space left on device")).startswith(
        "No space left on device; need room"
    )


def test_an_error_without_words_has_the_name_of_its_kind():
    assert (read_first_line(ValueError(" \n ")), to_sentence(OSError())) == ("ValueError", "OSError")


def test_a_bundle_in_the_place_of_a_checkpoint_is_called_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=rf"a folder as ckpt={tmp_path}; need a checkpoint; try: "):
        find_data_settings(OmegaConf.create({"data": None}), tmp_path)


def test_a_setting_that_is_gone_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        app.run(lambda cfg: cfg.b, OmegaConf.create({"b": "${seed}"}))
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("error: b, where Interpolation key 'seed' not found; need a value")
    assert said.count("\n") == 1


def test_a_file_that_is_no_checkpoint_is_told_before_its_run_is_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"notes\.txt, which is truncated or no checkpoint; need one of train\.py"):
        find_data_settings(OmegaConf.create({}), tmp_path / "notes.txt")
