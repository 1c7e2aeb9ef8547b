"""What Ctrl-C and SIGTERM become, in the process that works and in those that it forks."""

import os
import signal
import threading

import pytest

from cellvision.training.stopping import Stopped, stopping


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_work_with_its_status(number, status):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name}") as caught, stopping():
        signal.raise_signal(number)
    assert caught.value.exit_status == status
    assert signal.getsignal(number) == before


def test_a_second_one_would_end_the_process():
    with stopping():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_loader_process_ends_without_a_word(monkeypatch):
    with stopping(), monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with stopping():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_way_to_go_on_is_told_where_there_is_one(tmp_path):
    stop = Stopped(signal.SIGTERM)
    assert stop.advise(None) == "stopped by SIGTERM"
    assert stop.advise(tmp_path).endswith("no epoch was saved yet: there is nothing to go on from")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert stop.advise(tmp_path).endswith(f"the same command with run_dir={tmp_path} resume=auto")


def test_an_error_that_a_library_makes_of_it_is_still_the_signal():
    def wrap():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("a graph that could not be made") from error

    with pytest.raises(Stopped, match="stopped by SIGTERM") as caught, stopping():
        wrap()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match="its own"), stopping():
        raise ValueError("its own")
