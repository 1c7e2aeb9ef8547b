import os
import platform
import re
import subprocess
import sys

from cellvision.runtime.files.writers import StagedFiles, name_owner, remove_leftovers


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = platform.node()
    left = tmp_path / f".{host}-{ended.pid}-0.part"
    others = [
        f".{host}-{ended.pid}-1.part", f".{host}-{os.getpid()}-999.part", f".{host}x-{ended.pid}-0.part",
        f"{host}-{ended.pid}-0.part", f".{host}-{ended.pid}-0.part.txt",
    ]  # fmt: skip
    for path in (left, *(tmp_path / name for name in others)):
        path.write_text("a")
        os.utime(path, (0, 0))
    os.utime(tmp_path / others[0])  # written to just now: a process of another container, for all one knows
    with StagedFiles(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_folders_of_killed_processes_go_with_all_that_is_in_them(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f".made.{platform.node()}-{ended.pid}.x", f".made.{name_owner()}.x", f".other.{name_owner()}.x"]
    for name in names:
        (tmp_path / name / "bundle").mkdir(parents=True)
        (tmp_path / name / "bundle" / "graph.onnx").touch()
        os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path, re.compile(r"\.made\.(?P<host>.+)-(?P<process>\d+)\..+"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
