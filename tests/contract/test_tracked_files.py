"""No file of the repository holds an address of a package registry, a path of one machine, or a key."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each pattern is written so that it does not match its own text.
PATTERNS = {
    "a registry address": re.compile(
        r"pypi[.]org|python"
        r"hosted[.]org|anaconda[.]org|download[.]pytorch"
        r"|(?:extra-)?index-url[ =]|find-links[ =]|(?<=/)simple/?\b(?=[\s'\"]|$)"
    ),
    "a path of one machine": re.compile(r"(?<![\w.~<>*/-])(?:/(?:home|root|Users|work|opt|mnt)/\w|[A-Z]:\\\\?Users\b)"),
    "a key": re.compile(
        r"-{5}BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[opsu]_\w{36}|\bhf_\w{30}|\bsk-[\w-]{32}"
        r"|AccountKey=\w{20}|://[^/\s:@'\"]+:[^/\s:@'\"]+@"
    ),
}


def find_faults(path):
    content = path.read_bytes()
    if b"\0" in content:
        return []
    text = content.decode("utf-8", errors="replace")
    return [
        f"{path.name}:{number} holds {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in PATTERNS.items()
        if pattern.search(line)
    ]


def test_repository_holds_nothing_of_one_machine():
    # Files about to be added count too: afterwards they would be in the history.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout that can be listed ({error})")
    paths = [ROOT / name for name in listed.decode("utf-8").split("\0") if name]
    assert [fault for path in paths if path.is_file() for fault in find_faults(path)] == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("https://pypi" + ".org/project/torch", "a registry address"),
        ("pip install --extra-index" + "-url https://example.org/packages torch", "a registry address"),
        ("mirror: https://example.org/" + "simple", "a registry address"),
        ("root = '/ho" + "me/anna/images'", "a path of one machine"),
        ('"C:\\' + 'Users\\anna"', "a path of one machine"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a key"),
        ("token = 'ghp" + "_" + "a1" * 18 + "'", "a key"),
        ("https://anna:" + "secret@example.org", "a key"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, line, what):
    (tmp_path / "a.txt").write_text(f"fine\n{line}\n")
    assert find_faults(tmp_path / "a.txt") == [f"a.txt:2 holds {what}"]


@pytest.mark.parametrize(
    "line",
    [
        "data.root=../shared/data/livedead_mcf7_nc",
        "a framework/test and src/home/cells",
        "http://www.apache.org/licenses/LICENSE-2.0",
        "see /etc/passwd, /proc/cpuinfo",
        "a simple line of text, hf_hub_download, sk-learn",
    ],
)
def test_ordinary_lines_are_not_faults(tmp_path, line):
    (tmp_path / "a.txt").write_text(line)
    assert find_faults(tmp_path / "a.txt") == []
