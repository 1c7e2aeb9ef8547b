"""Which code goes along, what it runs in, and what is refused before anything is uploaded."""

import os
import subprocess

import pytest

pytest.importorskip("pathspec", reason="needs the azure extra")

from cellvision.cloud.environment import choose_environment
from cellvision.cloud.ledger import Ledger
from cellvision.cloud.options import LaunchOptions
from cellvision.cloud.snapshot import check_clean, copy_snapshot, describe_changes, list_files, read_snapshot
from cellvision.errors import ConfigError, DataError


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root, *words):
    given = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *given, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path):
    write(tmp_path, train="1", src__a="2", src__b="3", runs__best="4", deep__runs__x="5")
    return tmp_path


def test_amlignore_wins_over_gitignore(tree):
    assert list_files(tree) == ["deep/runs/x", "runs/best", "src/a", "src/b", "train"]
    (tree / ".gitignore").write_text("/runs/\n")
    assert list_files(tree) == [".gitignore", "deep/runs/x", "src/a", "src/b", "train"]
    (tree / ".amlignore").write_text("# only this\nsrc/b\n.*ignore\n")
    assert list_files(tree) == ["deep/runs/x", "runs/best", "src/a", "train"]


def test_a_file_can_be_taken_back_in_from_an_excluded_folder(tree):
    (tree / ".amlignore").write_text("src/\n!src/b\n.*\n")
    assert list_files(tree) == ["deep/runs/x", "runs/best", "src/b", "train"]


def test_what_is_no_file_does_not_go_along(tree):
    """Such as an editor's broken link, and a pipe, whose reading would not end."""
    (tree / ".#train").symlink_to("nobody@nowhere.1:2")
    os.mkfifo(tree / "pipe")
    assert list_files(tree) == ["deep/runs/x", "runs/best", "src/a", "src/b", "train"]
    assert len(read_snapshot(tree, max_mib=1).files) == 5


def test_the_digest_follows_names_and_contents(tree):
    before = read_snapshot(tree, max_mib=1)
    assert before == read_snapshot(tree, max_mib=1)
    (tree / "src/a").write_text("3")
    changed = read_snapshot(tree, max_mib=1)
    (tree / "src/a").write_text("2")
    (tree / "src/a").rename(tree / "src/c")
    assert len({before.sha256, changed.sha256, read_snapshot(tree, max_mib=1).sha256}) == 3


def test_a_large_tree_is_refused_with_what_makes_it_large(tree):
    (tree / "cells.tif").write_bytes(bytes(3 * 2**20))
    with pytest.raises(ConfigError, match=r"3\.0 MiB of code .*cells\.tif 3\.0, .*; need at most 2 MiB.*; try: .*=4$"):
        read_snapshot(tree, max_mib=2)


def test_a_copy_never_becomes_part_of_the_code(tree, tmp_path_factory):
    write(tree, **{".gitignore": "runs/\n"})
    snapshot = read_snapshot(tree, max_mib=1)
    with pytest.raises(ConfigError, match=r"mine/code, which would go with the code of .*; need .*; try: folder=runs/"):
        copy_snapshot(snapshot, tree / "mine" / "code")
    assert not (tree / "mine").exists()
    for folder in (tree / "runs" / "deep" / "code", tmp_path_factory.mktemp("elsewhere") / "code"):
        for _ in range(2):
            assert copy_snapshot(read_snapshot(tree, max_mib=1), folder).files == snapshot.files
            assert (folder / "src" / "a").read_text() == "2"


def test_a_tree_that_nobody_could_get_again_is_refused(tree):
    assert describe_changes(tree) is None  # not under Git
    git(tree, "init")
    with pytest.raises(
        ConfigError,
        match=r"not committed: deep/, runs/, src/ and 1 more; need a commit.*; try: git commit, or hydra\.launch",
    ):
        check_clean(tree)
    git(tree, "add", ".")
    git(tree, "commit", "-m", "a")
    check_clean(tree)
    (tree / "src/a").write_text("9")
    assert describe_changes(tree) == "src/a"


def test_environments(tmp_path):
    def choose(**options):
        return choose_environment(LaunchOptions(**options), root=tmp_path, folder=tmp_path / "sweep")

    assert choose(environment="azureml:cells:3").name == "azureml:cells:3"
    with pytest.raises(ConfigError, match=r"no docker/Dockerfile, no pyproject\.toml, no requirements\.lock in"):
        choose()
    write(tmp_path, docker__Dockerfile="FROM a", **{"pyproject.toml": "", "requirements.lock": "torch==1"})
    built = choose()
    assert {path.name for path in built.context.iterdir()} == {"Dockerfile", "pyproject.toml", "requirements.lock"}
    write(tmp_path, **{"requirements.lock": "torch==2"})
    assert choose().digest != built.digest
    with pytest.raises(ConfigError, match=r"no file hydra\.launcher\.conda=conda\.yml; need a conda file"):
        choose(image="base", conda="conda.yml")
    write(tmp_path, **{"conda.yml": "dependencies: [python]"})
    with_conda = choose(image="base", conda="conda.yml")
    assert (with_conda.image, with_conda.conda) == ("base", tmp_path / "conda.yml")
    assert with_conda.digest != choose(image="base").digest


def test_a_ledger_is_taken_up_again_and_a_broken_one_is_not_lost(tmp_path):
    Ledger(tmp_path).write("cv-b", index=1, job="cv-b", status="Queued")
    again = Ledger(tmp_path)
    again.write("cv-a", index=0, job="cv-a", status="Queued")
    again.write("cv-b", status="Completed")
    jobs = Ledger(tmp_path).jobs
    assert list(jobs) == ["cv-a", "cv-b"]
    assert jobs["cv-b"] == {"plan": "cv-b", "index": 1, "job": "cv-b", "status": "Completed"}
    (tmp_path / "azure_jobs.json").write_text('{"jobs": [')
    with pytest.raises(DataError, match=r"azure_jobs\.json cannot be read; need what an earlier launch wrote"):
        Ledger(tmp_path)
