"""What is told of errors that are not ours."""

from __future__ import annotations

import errno
import os

import pytest
from omegaconf import OmegaConf

from cellvision import app, cli
from cellvision.errors import read_first_line, to_sentence


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


def test_an_error_without_words_has_the_name_of_its_kind():
    assert (read_first_line(ValueError(" \n ")), to_sentence(OSError())) == ("ValueError", "OSError")
