import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cellvision.cli import main
from cellvision.errors import ConfigError
from cellvision.runtime.files.claim import LOCK_NAME, claim_folder

HOLD = """
import pathlib, sys
from cellvision.runtime.files.claim import claim_folder
with claim_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder of results until its input ends."""
    command = [sys.executable, "-c", HOLD, tmp_path / "out"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_while_the_first_is_at_work(holder, tmp_path, stain_bundle, capsys):
    (tmp_path / "A1.tif").touch()
    arguments = ["predict", "--bundle", str(stain_bundle), str(tmp_path / "A1.tif"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    owner = f"process {holder.pid} of {platform.node()}"
    assert capsys.readouterr().err == (
        f"cellvision: another run is at work in the folder for results, {tmp_path / 'out'} ({owner}); "
        "need a folder for each run, so that its tables list all that lies beside them; try: another --out\n"
    )
    holder.communicate("")
    assert holder.returncode == 0
    assert not (tmp_path / "out").exists(), "the first wrote nothing, so nothing is left"


def test_what_a_killed_run_left_is_in_nobodys_way(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = tmp_path / "out" / LOCK_NAME
    assert lock.read_text() == f"process {holder.pid} of {platform.node()}\n"
    with claim_folder(tmp_path / "out"):
        assert lock.read_text() == f"process {os.getpid()} of {platform.node()}\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_that_another_has_just_removed_holds_nothing(tmp_path, monkeypatch):
    """Between opening the file and locking it, its last holder can end."""
    real = os.open

    def open_and_lose(path, *rest):
        descriptor = real(path, *rest)
        if Path(path).name == LOCK_NAME:
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with pytest.raises(ConfigError, match=r"another run is at work .* \(just ended\)"), claim_folder(tmp_path):
        pytest.fail("two runs could hold a lock each")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(
            ConfigError, match=r"cannot lock .*\.cellvision\.lock \(No locks available\); need a file system"
        ),
        claim_folder(tmp_path / "out"),
    ):
        pytest.fail("nothing is locked")
    assert not (tmp_path / "out" / "cells.csv").exists()


def test_results_stay_and_the_lock_goes(tmp_path):
    with claim_folder(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_NAME]
        (tmp_path / "out" / "cells.csv").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells.csv"]
    with pytest.raises(ConfigError, match=r"holds those of another run \(cells\.csv\)"), claim_folder(tmp_path / "out"):
        pytest.fail("these results are another's")
