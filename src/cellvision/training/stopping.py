"""A run that is asked to stop: it says in one line how to go on, and ends with the exit status of the signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The process was told to end; no Exception, so that nothing on the way takes it for an error of its own.

    Attributes:
        signal: that it got.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")

    @property
    def exit_status(self) -> int:
        """What a shell expects: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal

    def advise(self, folder: Path | None) -> str:
        """One line: what happened, and how to go on.

        Args:
            folder: of the run; None for work that cannot be resumed.
        """
        if folder is None:
            return str(self)
        from cellvision.training.checkpoint import LAST, PREVIOUS  # brings torch

        if not any((folder / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS)):
            return f"{self}; no epoch was saved yet: there is nothing to go on from"
        return f"{self}; to go on after the last saved epoch: the same command with run_dir={folder} resume=auto"


@contextmanager
def stopping() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM raise `Stopped`; a second one ends the process at once.

    Where a library makes another error of it on the way, as PyTorch's exporter does, it is `Stopped` again in the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    owner, raised = os.getpid(), list[Stopped]()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:
            raise KeyboardInterrupt  # a loader process, which knows how to end by it without a word
        signal.signal(number, signal.SIG_DFL)
        raised.append(Stopped(number))
        raise raised[0]

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        if raised:
            raise raised[0] from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
