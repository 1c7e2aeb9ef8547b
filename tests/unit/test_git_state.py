"""Which commit the code is of: asked of Git, and in a job of what it was submitted from."""

import subprocess

import pytest

from cellvision.git_state import VARIABLE, describe_git, format_git


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_a_checkout_is_named_by_its_commit_and_its_changes(checkout, monkeypatch):
    folder, commit = checkout
    monkeypatch.setenv(VARIABLE, "of a job")  # counts only where no folder is asked for
    assert describe_git(folder) == {"commit": commit, "changed": False}
    assert format_git(describe_git(folder)) == commit
    (folder / "a").write_text("2")
    assert format_git(describe_git(folder)) == f"{commit} with changes"


def test_without_history_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_git(tmp_path) == {}
    assert format_git({}) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_git(tmp_path) == {}


@pytest.mark.parametrize("changed", [False, True])
def test_a_job_is_told_what_it_was_submitted_from(checkout, tmp_path_factory, monkeypatch, changed):
    state = {"commit": "1f0c9a", "changed": changed}
    monkeypatch.setenv(VARIABLE, format_git(state))
    monkeypatch.chdir(checkout[0])
    assert describe_git()["commit"] == checkout[1]  # a checkout knows better
    without = tmp_path_factory.mktemp("job")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(without.parent))
    monkeypatch.chdir(without)
    assert describe_git() == state
