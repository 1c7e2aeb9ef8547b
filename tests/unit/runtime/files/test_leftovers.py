import os
import platform
import subprocess
import sys

from cellvision.runtime.files.writers import StagedFiles


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = platform.node()
    left = tmp_path / f".{host}-{ended.pid}-0.part"
    others = [
        f".{host}-{ended.pid}-1.part", f".{host}-{os.getpid()}-999.part", f".{host}x-{ended.pid}-0.part",
        f"{host}-{ended.pid}-0.part", f".{host}-{ended.pid}-0.part.txt", f".{ended.pid}-0.part",
    ]  # fmt: skip
    for path in (left, *(tmp_path / name for name in others)):
        path.write_text("a")
        os.utime(path, (0, 0))
    os.utime(tmp_path / others[0])  # written to just now: a process of another container, for all one knows
    with StagedFiles(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
