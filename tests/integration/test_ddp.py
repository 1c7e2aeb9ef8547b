"""Two processes of train.py on one CPU: the net of one process, an end for all when one is killed, and what goes on."""

import signal
import time

import psutil
import pytest
import torch
from toy import count_epochs, finish, finish_python, name_run, start

from cellvision.training.checkpoint import load_plain_checkpoint

pytestmark = pytest.mark.slow

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
# Group normalisation, for the statistics of a batch are of one process's share; and a loss whose terms are means over
# as many pixels in each process. Plain gradient steps: AdamW's would make much of a rounding where a gradient is 0.
ALIKE = [
    "model.norm=group", "optim=sgd", "~callbacks.pictures", "trainer.max_epochs=3",
    "model.loss={ce: {weight: 1.0}, distance: {weight: 1.0, foreground_weight: 1.0}}",
]  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process, with the batches of two."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder, *ALIKE, "data.batch_size=4"))
    return folder


def assert_same_net(one, other, *, largest=1e-6):
    first, second = (load_plain_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, other))
    assert first["global_step"] == second["global_step"] == 6
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], value, rtol=0, atol=largest, msg=name)


def read_history(folder):
    names, *rows = (line.split(",") for line in (folder / "history.csv").read_text().splitlines())
    return [{name: float(value) for name, value in zip(names, row, strict=True) if value} for row in rows]


def find_second(script):
    """The process that the first one has started."""
    command = psutil.Process(script.process.pid)
    while script.is_alive:
        for child in command.children():
            if any("train_ddp_process_1" in word for word in child.cmdline()):
                return child
        time.sleep(0.05)
    raise AssertionError(script.finish())


def test_two_processes_train_the_net_of_one(alone, tmp_path):
    printed = finish(start(tmp_path, *ALIKE, *TWO))
    assert_same_net(alone, tmp_path)
    for one, two in zip(read_history(alone), read_history(tmp_path), strict=True):
        assert two == pytest.approx(one, abs=1e-5)  # the losses of both processes are shown, not those of one
    assert printed.count("results   ") == 1


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_and_one_alone_goes_on(alone, tmp_path, killed):
    with start(tmp_path, *ALIKE, *TWO, "trainer.max_epochs=1000") as script:
        second = find_second(script)
        while script.is_alive and count_epochs(tmp_path) < 2:  # the checkpoint of the first is written by then
            time.sleep(0.02)
        first = psutil.Process(script.process.pid)
        (first, second)[killed].send_signal(signal.SIGKILL)
        done = script.finish(timeout=120)
        assert not psutil.wait_procs([second], timeout=60)[1]
    assert done.returncode == (-signal.SIGKILL if killed == 0 else 1), done
    if killed == 1:
        assert f"the same command with run_dir={tmp_path} resume=auto" in done.stderr
    # Half as many images in each step would be another run.
    with start(tmp_path, *ALIKE, "resume=auto") as script:
        refused = script.finish()
    assert refused.returncode == 2
    assert "images_per_step: 4 became 2; need the settings the run began with; try: other data." in refused.stderr
    printed = finish(
        start(tmp_path, *ALIKE, "resume=auto", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=6")
    )
    assert "resume: " in printed
    assert count_epochs(tmp_path) >= 6


def test_torchrun_gives_the_same_net(alone, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    printed = finish_python(*torchrun, *name_run(tmp_path, *ALIKE, *TWO))
    assert_same_net(alone, tmp_path)
    assert printed.count("results   ") == 1
