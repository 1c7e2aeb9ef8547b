"""Command lines as Hydra gets them, and what is said beside a command."""

import errno
import threading

import pytest
from hydra.errors import ConfigCompositionException

from cellvision.launch import _tell_of_thread, explain_composition, open_words


@pytest.mark.parametrize(
    ("script", "words", "opened"),
    [
        ("export", ["data.root=PATH", "samples=8"], ["++data.root=PATH", "samples=8"]),
        ("export", ["data=livedead", "+trt=fp16"], ["data=livedead", "+trt=fp16"]),
        ("export", ["trt=fp16", "--help"], ["+trt=fp16", "--help"]),
        ("compress", ["model=unet"], ["+model=unet"]),
        ("train", ["data.root=PATH", "model=unet"], ["data.root=PATH", "model=unet"]),
        ("train", ["compress.distill.weights.classes=null"], ["++compress.distill.weights.classes=null"]),
        ("compress", ["compress.distill.weights={features: 0.5}"], ["++compress.distill.weights={features: 0.5}"]),
        ("compress", ["compress.distill.weight=0", "-m"], ["compress.distill.weight=0", "-m"]),
    ],
)
def test_what_is_open_takes_settings_that_are_not_there(script, words, opened):
    assert open_words(script, words) == opened


def test_a_log_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    """TensorBoard writes in a thread of its own, whose errors Python would print with all their lines."""
    monkeypatch.setattr(threading, "excepthook", _tell_of_thread)

    def fail(error):
        raise error

    for error, lines in ((OSError(errno.ENOSPC, "No space left on device", "log"), 1), (ValueError("a fault"), 5)):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
        said = capsys.readouterr().err
        assert said.startswith("warning: log: No space left on device; need room on the disk; try: ") == (lines == 1)
        assert (said.count("\n") == 1) == (lines == 1)


@pytest.mark.parametrize("script", ["compress.py", "pipeline.py"])  # which composes for the other
@pytest.mark.parametrize("key", ["data.batch_size", "+data.fields"])
def test_a_key_is_shown_as_it_was_typed(monkeypatch, key, script):
    """Where compress.py is told of data, launch puts a plus before it that nobody typed."""
    (opened,) = open_words("compress", [f"{key}=1,2"])
    monkeypatch.setattr("sys.argv", [script, opened])
    error = ConfigCompositionException(f"Ambiguous value for argument '{opened}'\n1. To use it as a list")
    assert explain_composition(error).startswith(f"{key}=1,2, which are two values; ")
    assert f"; try: {key}=1.2, " in explain_composition(error)
