"""Steps that are done once: skipped, done again, gone on with, or refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cellvision.errors import ConfigError
from cellvision.release import steps
from cellvision.release.lock import hold
from cellvision.release.pipeline import Plan, build_steps, find_production, forget_lost
from cellvision.release.record import AZURE
from cellvision.release.registry import ModelRegistry
from cellvision.release.steps import EARLIER, Step, StepError, run_steps
from stain_net import write_bundle

COPY = """
import sys
from pathlib import Path
source, target, *status = map(Path, sys.argv[1:])
target.parent.mkdir(exist_ok=True, parents=True)
before = target.read_text() if target.exists() else ""
target.write_text(before + source.read_text())
if (source.parent / "fail").exists():
    sys.exit(3)
"""


class Chain:
    """input.txt -> run/one -> run/two, by a script that adds what it reads to what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder / "run", []
        self.source = folder / "input.txt"
        self.source.write_text("a")
        (folder / "copy.py").write_text(COPY)
        self.scripts = folder
        self.one, self.two = self.folder / "one", self.folder / "two"

    def run(self, *, extra: str = "", resumes: bool = False, last: tuple[Path, ...] | None = None) -> list[str]:
        """Run it; the names of the steps that were not skipped."""
        words = (extra,) if extra else ()
        command = ("python", "copy.py", str(self.source), str(self.one), *words)
        chain = [
            Step(name="first", command=command, inputs=(self.source,), outputs=(self.one,), resumes=resumes),
            Step(
                name="second",
                command=("python", "copy.py", str(self.one), str(self.two)),
                inputs=(self.one,),
                outputs=(self.two,) if last is None else last,
            ),
        ]
        self.lines = []
        run_steps(chain, self.folder, scripts=self.scripts, tell=self.lines.append)
        return [line.split()[1].rstrip("]") for line in self.lines if " took " in line]


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path)


def test_what_is_there_is_left_as_it_is(chain):
    assert chain.run() == ["first", "second"]
    assert chain.run() == []
    assert chain.lines == ["[1/2 first] is there already", "[2/2 second] is there already"]
    assert chain.two.read_text() == "a"


def test_another_input_makes_all_of_it_again_and_an_equal_output_ends_that(chain):
    chain.run()
    chain.source.write_text("b")
    assert chain.run() == ["first", "second"]
    assert chain.two.read_text() == "b"  # and not "ab": what an earlier one has left is removed
    assert chain.run(extra="another") == ["first"]


def test_a_missing_output_is_made_again(chain):
    chain.run()
    chain.one.unlink()
    assert chain.run() == ["first"]


def test_another_release_makes_all_of_it_again(chain, monkeypatch):
    chain.run()
    monkeypatch.setattr(steps.cellvision, "__version__", "99", raising=False)
    assert chain.run() == ["first", "second"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_files_of_somebody_else_are_not_removed(chain, kind):
    chain.folder.mkdir()
    if kind == "folder":
        chain.two.mkdir()
        (chain.two / "precious").write_text("a")
    elif kind == "link":
        chain.two.symlink_to(chain.source)
    else:
        chain.two.write_text("precious")
    with pytest.raises(
        ConfigError, match=r"two is there, and was not made by a pipeline in that folder; need a folder"
    ):
        chain.run()
    assert chain.two.exists()
    assert not chain.one.exists()  # found before anything was done


def test_a_step_without_outputs_is_done_each_time(chain):
    assert chain.run(last=()) == ["first", "second"]
    assert chain.run(last=()) == ["second"]


def test_what_a_long_step_made_with_other_settings_is_set_aside_and_comes_back(chain):
    chain.run(resumes=True)
    chain.source.write_text("b")
    chain.source.with_name("fail").touch()
    with pytest.raises(StepError):
        chain.run(resumes=True)
    (aside,) = (chain.folder / EARLIER).iterdir()
    assert (aside / "one").read_text() == "a"
    chain.source.with_name("fail").unlink()
    chain.source.write_text("a")
    assert chain.run(resumes=True) == []
    assert chain.one.read_text() == "a"
    chain.source.write_text("b")  # which had been broken off, and goes on
    assert chain.run(resumes=True) == ["first", "second"]
    assert chain.one.read_text() == "bb"


def test_of_what_was_set_aside_the_last_is_kept(chain):
    for text in "abc":
        chain.source.write_text(text)
        chain.run(resumes=True)
    (aside,) = (chain.folder / EARLIER).iterdir()
    assert (aside / "one").read_text() == "b"
    assert chain.one.read_text() == "c"
    assert "what it made with other settings is in" in chain.lines[0]


@pytest.mark.parametrize("resumes", [False, True])
def test_killed_while_it_removes_what_was_there_it_begins_again(chain, monkeypatch, resumes):
    """Half of what was there is nothing that was made."""
    for text in "ab":
        chain.source.write_text(text)
        chain.run(resumes=resumes)
    chain.source.write_text("c")

    def die(path, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            chain.run(resumes=resumes)
    chain.source.write_text("b" if not resumes else "a")
    assert "first" in chain.run(resumes=resumes)
    assert chain.one.read_text() == chain.source.read_text()


def test_a_folder_that_cannot_be_made_is_one_sentence(chain):
    chain.folder = chain.source
    with pytest.raises(ConfigError, match=r"folder=.*input\.txt, which cannot be made \(File exists\); need a folder"):
        chain.run()


def test_a_folder_for_what_is_set_aside_that_is_somebodys_is_not_used(chain):
    (chain.folder / EARLIER).mkdir(parents=True)
    (chain.folder / EARLIER / "notes.txt").touch()
    with pytest.raises(ConfigError, match=f"{EARLIER} is there, and was not made by a pipeline"):
        chain.run(resumes=True)


@pytest.mark.parametrize(("resumes", "left"), [(True, "aa"), (False, "a")])
def test_a_broken_step_goes_on_or_begins_again(chain, resumes, left):
    (chain.scripts / "fail").touch()
    said = "step first ended with status 3; need 0; try: see above; then the same command goes on from this step"
    with pytest.raises(StepError, match=said):
        chain.run(resumes=resumes)
    (chain.scripts / "fail").unlink()
    assert chain.run(resumes=resumes) == ["first", "second"]
    assert chain.one.read_text() == left


def test_what_was_begun_with_another_input_does_not_go_on(chain):
    (chain.scripts / "fail").touch()
    with pytest.raises(StepError):
        chain.run(resumes=True)
    (chain.scripts / "fail").unlink()
    chain.source.write_text("b")
    chain.run(resumes=True)
    assert chain.one.read_text() == "b"


def test_a_step_that_writes_nothing_is_an_error(chain):
    with pytest.raises(StepError, match=r"step second did not write .*/three; need all of its outputs; try: see above"):
        chain.run(last=(chain.folder / "three",))


def test_a_missing_input_is_named(chain):
    chain.source.unlink()
    with pytest.raises(ConfigError, match=r"input\.txt, which step first reads, is not there; need a file or a folder"):
        chain.run()


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_one_run_at_a_time(chain):
    chain.folder.mkdir()
    with (
        hold(chain.folder / ".pipeline.lock", work="something"),
        pytest.raises(ConfigError, match=r"another process at work there \(.*\); need one at a time; try: the same"),
    ):
        chain.run()
    assert chain.run() == ["first", "second"]


KILLED = """
import sys
from pathlib import Path
from cellvision.release.steps import Step, run_steps
scripts, folder = map(Path, sys.argv[1:])
step = Step(name="long", command=("python", "long.py", str(folder / "pid")), outputs=(folder / "long",))
run_steps([step], folder, scripts=scripts)
"""
LONG = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(100)
"""


def wait_for(met, seconds=60):
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_step_of_a_killed_pipeline_keeps_the_next_one_out(chain):
    (chain.scripts / "long.py").write_text(LONG)
    noted = chain.folder / "pid"
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(chain.scripts), str(chain.folder)])
    wait_for(lambda: noted.is_file() and noted.read_text())
    with pytest.raises(ConfigError, match=r"another process at work there \(.*; try: the same again when it has ended"):
        chain.run()
    killed.kill()
    killed.wait()
    step = psutil.Process(int(noted.read_text()))
    try:
        said = (
            f"a step of a killed pipeline, still at work there (process {step.pid}, {chain.folder}/.pipeline.lock); "
            f"need one at a time; try: wait for it, or kill {step.pid}, then the same again"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
            chain.run()
        assert not chain.one.exists()
    finally:
        os.kill(step.pid, signal.SIGKILL)
    wait_for(lambda: not step.is_running() or step.status() == psutil.STATUS_ZOMBIE)
    assert chain.run() == ["first", "second"]


def make_plan(folder, **more):
    (folder / "conf").mkdir(exist_ok=True)
    for name in ("train.yaml", "pipeline.yaml"):
        (folder / "conf" / name).touch()
    given = {"name": "a", "folder": folder / "run", "models": folder / "models", "conf": folder / "conf"}
    return Plan(**(given | more))


def test_the_steps_of_a_pipeline_fit_together(tmp_path):
    data = tmp_path / "data"
    plan = make_plan(tmp_path, data=(f"data.root={data}", "data=livedead"), at_least=0.5)
    chain = build_steps(plan, named={"prepare": (data,), "train": (data,)})
    assert [step.name for step in chain if data in step.inputs] == ["prepare", "train"]
    assert [step.name for step in chain] == [
        "prepare", "train", "compress", "export", "evaluate", "register", "deploy",
    ]  # fmt: skip
    made = {tmp_path / "conf" / "train.yaml", data}
    for step in chain:
        assert all(any(path == there or there in path.parents for there in made) for path in step.inputs), step.name
        made |= set(step.outputs)
        assert step.command[0] in ("python", "cellvision")
        for output in step.outputs:
            assert str(output) in " ".join(step.command)
    assert all(f"data.root={data}" in step.command for step in chain[:2])
    assert chain[5].command[-4:-2] == ("--at-least", "0.5")
    assert "--stop-after" in chain[6].command


def test_a_pipeline_without_compression_or_end(tmp_path):
    chain = build_steps(make_plan(tmp_path, compress=None, keep=True))
    assert [step.name for step in chain] == ["prepare", "train", "export", "evaluate", "register", "deploy"]
    assert f"ckpt={tmp_path / 'run' / 'train' / 'checkpoints' / 'best.ckpt'}" in chain[2].command
    assert "--stop-after" not in chain[-1].command


def test_another_version_in_production_is_scored_on_the_same_fields(tmp_path):
    plan = make_plan(tmp_path)
    assert find_production(plan) is None
    registry = ModelRegistry(plan.models)
    version = registry.register(write_bundle(tmp_path / "bundle"), "a")
    registry.set_production("a", 1)
    chain = build_steps(plan, find_production(plan))
    beside = next(step for step in chain if step.name == "evaluate_production")
    assert str(version.bundle) in beside.command
    assert set(beside.outputs) < set(chain[-2].inputs)
    assert chain[-2].command[-4:-2] == ("--production-scores", str(beside.outputs[0]))
    plan.folder.mkdir()
    (plan.folder / "registered.json").write_text('{"name": "b", "version": 1}')
    assert find_production(plan) == version.bundle
    (plan.folder / "registered.json").write_text('{"name": "a", "version": 1}')
    assert find_production(plan) is None
    assert find_production(plan, has_new_fields=True) == version.bundle
    plan.validation.mkdir()
    os.utime(plan.validation, (2e9, 2e9))  # written since, by a run that was broken off
    assert find_production(plan) == version.bundle


@pytest.mark.parametrize(
    ("change", "stays"),
    [({}, True), ({"version": 2}, False), ({"created": "2020-01-01T00:00:00+00:00"}, False)],
)
def test_a_version_that_the_registry_has_lost_is_registered_again(tmp_path, change, stays):
    plan = make_plan(tmp_path)
    forget_lost(plan)
    version = ModelRegistry(plan.models).register(write_bundle(tmp_path / "bundle"), "a")
    plan.folder.mkdir()
    record = plan.folder / "registered.json"
    record.write_text(json.dumps({"name": "a", "version": version.version, "created": version.created} | change))
    forget_lost(plan)
    assert record.exists() == stays
    record.write_text(json.dumps({"name": "a", "version": 9}))
    forget_lost(make_plan(tmp_path, models=AZURE, host=None, port=None, keep=True))  # nothing is known of that one here
    assert record.exists()
    forget_lost(make_plan(tmp_path, models=tmp_path / "others"))
    assert not record.exists()


def test_options_of_the_deployment_are_those_that_were_given(tmp_path):
    chain = build_steps(make_plan(tmp_path, host=None, port=None, keep=True, deploy=("--threads=2",)))
    words = chain[-1].command
    record = tmp_path / "run" / "registered.json"
    assert words[words.index("--registered") + 1] == str(record)  # and not the newest
    assert chain[-2].outputs == (record,)
    assert words[-2:] == (str(tmp_path / "run" / "validation" / "images"), "--threads=2")


@pytest.mark.parametrize("word", ["--version=1", "--vers=1", "--registered=a", "--reg", "--sample=a", "--rollback"])
def test_what_is_deployed_cannot_be_chosen(tmp_path, word):
    with pytest.raises(ConfigError, match=f"settings.deploy entry '{word}'; need none of these: what was registered"):
        make_plan(tmp_path, deploy=(word,))
    assert make_plan(tmp_path, deploy=("--stop-after", "--threads", "2")).deploy


def test_settings_that_are_none(tmp_path):
    with pytest.raises(
        ConfigError, match=r"settings\.train entry 'fast'; need settings as on the command line, key=value; try: "
    ):
        make_plan(tmp_path, train=("fast",))
    assert make_plan(tmp_path, train=("~callbacks.pictures",)).train
    for name, setting in (
        ("train", "run_dir=a"), ("train", "resume=null"), ("compress", "ckpt=a"), ("export", "++bundle=a"),
        ("data", "folder=a"),
    ):  # fmt: skip
        with pytest.raises(
            ConfigError, match=rf"settings\.{name} entry '.*{setting.lstrip('+')}'; need no such entry: each step"
        ):
            make_plan(tmp_path, **{name: (setting,)})
    with pytest.raises(ConfigError, match="metric cell/loss, of which more is not better"):
        make_plan(tmp_path, metric="cell/loss")
