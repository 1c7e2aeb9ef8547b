"""Progress of an export as a person at a terminal sees it, and as a log keeps it."""

import io

import pytest

from cellvision.export import progress
from cellvision.export.progress import PhaseLines

STEPS = ["making the graph", "parity: 1 of 3 cases", "parity: 2 of 3 cases", "parity: 3 of 3 cases", "timing"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def tell_all(out):
    with PhaseLines(out) as tell:
        for text in STEPS:
            tell(text)
    return out.getvalue()


@pytest.mark.parametrize(("seconds", "lines"), [(1e9, [0, 1, 4]), (0.0, [0, 1, 2, 3, 4])])
def test_a_log_has_each_phase_and_its_steps_now_and_then(monkeypatch, seconds, lines):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", seconds)
    assert tell_all(io.StringIO()).splitlines() == [STEPS[at] for at in lines]


def test_on_a_terminal_the_steps_of_a_phase_write_over_each_other():
    assert tell_all(Terminal()).split("\n")[1].split("\r") == STEPS[1:4]
    assert tell_all(Terminal()).endswith("timing\n")


def fail(tell):
    tell("parity: 1 of 3 cases")
    raise ZeroDivisionError


def test_an_error_leaves_a_line_of_its_own():
    out = Terminal()
    with pytest.raises(ZeroDivisionError), PhaseLines(out) as tell:
        fail(tell)
    assert out.getvalue().endswith("cases\n")


def test_nothing_said_writes_nothing():
    out = Terminal()
    with PhaseLines(out):
        assert out.getvalue() == ""
    assert out.getvalue() == ""
