"""Two processes of train.py on one CPU: the net of one process, an end for all when one is killed, and what goes on."""

import signal
import time

import pytest
import torch
from toy import count_epochs, finish, name_run, start

from cellvision.training.checkpoint import load_plain_checkpoint
from forked import Script, start_two

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
# The default loss. Group normalisation, for the statistics of a batch are of one process's share; plain gradient steps,
# for AdamW's would make much of a rounding where a gradient is 0.
ALIKE = ["model.norm=group", "optim=sgd", "~callbacks.pictures", "trainer.max_epochs=3"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def assert_same_net(one, other, *, largest=1e-6):
    first, second = (load_plain_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, other))
    assert first["global_step"] == second["global_step"] == 6
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], value, rtol=0, atol=largest, msg=name)


def read_history(folder):
    names, *rows = (line.split(",") for line in (folder / "history.csv").read_text().splitlines())
    return [{name: float(value) for name, value in zip(names, row, strict=True) if value} for row in rows]


def train_and_kill(folder, killed):
    """Train in two processes, kill one of them after two epochs, and see how the other one ends."""
    two = start_two(*name_run(folder, *ALIKE, *TWO, "trainer.max_epochs=1000"))
    with two[0], two[1]:
        # The first checkpoint is written after two epochs.
        while count_epochs(folder) < 2 and all(each.is_alive for each in two):
            time.sleep(0.02)
        two[killed].send_signal(signal.SIGKILL)
        done = [each.finish(timeout=120) for each in two]
    assert done[killed].returncode == -signal.SIGKILL, done
    assert done[1 - killed].returncode == 1, done
    assert f"the same command with run_dir={folder} resume=auto" in done[1 - killed].stderr


def test_two_processes_train_the_net_of_one(tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    finish(start(alone, *ALIKE, "data.batch_size=4"))
    printed = finish(Script(*TORCHRUN, *name_run(two, *ALIKE, *TWO)))
    assert printed.count("results   ") == 1
    assert_same_net(alone, two)
    for one, other in zip(read_history(alone), read_history(two), strict=True):
        assert other == pytest.approx(one, abs=1e-5)  # the losses of both processes are shown, not those of one


def test_where_the_second_is_killed_the_first_ends(tmp_path):
    train_and_kill(tmp_path, 1)
    assert load_plain_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] >= 2


def test_where_the_first_is_killed_the_second_ends_and_one_alone_goes_on(tmp_path):
    train_and_kill(tmp_path, 0)
    # Half as many images in each step would be another run.
    with start(tmp_path, *ALIKE, "resume=auto") as script:
        refused = script.finish()
    assert refused.returncode == 2
    assert "images_per_step: 4 became 2; need the settings the run began with; try: other data." in refused.stderr
    wanted = count_epochs(tmp_path) + 2
    more = ["trainer.accumulate_grad_batches=2", f"trainer.max_epochs={wanted}"]
    printed = finish(start(tmp_path, *ALIKE, "resume=auto", *more))
    assert "resume: " in printed
    assert f"epoch {wanted}/{wanted}" in printed
