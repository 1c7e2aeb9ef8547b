"""Reading files of weights: every format that is in use, and nothing that runs."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cellvision.errors import DataError, MissingExtraError
from cellvision.models.centermask2.weights.files import read_weights

ARRAYS = {
    "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.linspace(0, 1, 12).reshape(3, 4)),
    "foreign": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 3), np.float16),
    "flags": np.array([True, False]),
    "one": np.array(2.5),
}
TENSORS = OrderedDict(weight=torch.arange(4.0).reshape(2, 2), bias=torch.zeros(2))


class Harmful:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def check_arrays(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
        assert found[name].shape == array.shape
        assert found[name].is_contiguous()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays_are_those_of_numpy(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    plain = {"__author__": "someone", "steps": np.float64(3.5)}
    path.write_bytes(pickle.dumps({"model": {**ARRAYS, "note": "text"}, **plain}, protocol=protocol))
    check_arrays(read_weights(path))


PYTHON_2 = (
    b"\x80\x02}U\x01a"  # {"a":
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x04\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x08%stbs."
)
"""An array of four int16 as Python 2 wrote it, its numbers as text."""


def test_pickles_of_python_2_hold_their_numbers_as_text(tmp_path):
    array = np.array([1, -2, 300, -400], dtype="<i2")
    (tmp_path / "old.pkl").write_bytes(PYTHON_2 % array.tobytes())
    np.testing.assert_array_equal(read_weights(tmp_path / "old.pkl")["a"].numpy(), array)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"model": t, "iteration": 7}, lambda t: {"state_dict": t}])
def test_files_of_torch_are_unwrapped(tmp_path, wrap, new_format):
    path = tmp_path / "weights.pth"
    torch.save(wrap(TENSORS), path, _use_new_zipfile_serialization=new_format)
    found = read_weights(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


def test_arrays_inside_files_of_torch_are_read(tmp_path):
    torch.save({"model": ARRAYS}, tmp_path / "weights.pth")
    check_arrays(read_weights(tmp_path / "weights.pth"))


def test_file_of_torch_may_be_called_pkl(tmp_path):
    torch.save({"model": TENSORS}, tmp_path / "weights.pkl")
    assert read_weights(tmp_path / "weights.pkl").keys() == TENSORS.keys()


def test_safetensors_are_read(tmp_path):
    save_file(dict(TENSORS), tmp_path / "weights.safetensors")
    assert torch.equal(read_weights(tmp_path / "weights.safetensors")["weight"], TENSORS["weight"])


@pytest.mark.parametrize("name", ["harmful.pkl", "harmful.pth", "harmful_old.pth"])
def test_nothing_in_a_file_is_run(tmp_path, name):
    path, trace = tmp_path / name, tmp_path / "trace"
    content = {"model": {"weight": torch.zeros(1), "x": Harmful(trace)}}
    if name.endswith("pkl"):
        path.write_bytes(pickle.dumps({"x": Harmful(trace)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization="old" not in name)
    with pytest.raises(DataError, match=r"cannot be loaded as weights only \(.*exec\); need tensors") as caught:
        read_weights(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([print, "x"], dtype=object), r"an array of 'O8' is not one of numbers"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "i2")]), r"an array of 'V6' is not one of numbers"),
        (np.array(["text"]), r"an array of 'U4' is not one of numbers"),
    ],
)
def test_arrays_of_other_than_numbers_are_refused(tmp_path, array, message):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": array}))
    with pytest.raises(DataError, match=message + r"|it asks for builtins.print"):
        read_weights(path)


@pytest.mark.parametrize("name", ["cut.pth", "cut.pkl", "cut.safetensors"])
def test_truncated_files_are_refused(tmp_path, name):
    path = tmp_path / name
    if name.endswith("pkl"):
        path.write_bytes(pickle.dumps(ARRAYS))
    elif name.endswith("pth"):
        torch.save(TENSORS, path)
    else:
        save_file(dict(TENSORS), path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut\..* cannot be loaded as weights only"):
        read_weights(path)


@pytest.mark.parametrize("content", [{"model": {"epoch": 3}}, [1, 2], {"model": {}}])
def test_files_without_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(DataError, match=r"none.pth holds no weights; need tensors by name, also under 'model'"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("kind", ["sparse_coo", "quantized", "meta"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_that_are_no_plain_numbers_are_named(tmp_path, kind):
    make = {
        "sparse_coo": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
        "meta": lambda: torch.empty(3, device="meta"),
    }
    torch.save({"model": {"head.weight": make[kind]()}}, tmp_path / "odd.pth")
    with pytest.raises(DataError, match=rf"head\.weight in .*odd\.pth is a tensor of the kind {kind}; need plain numb"):
        read_weights(tmp_path / "odd.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no weights .*gone.pth; need a file; try: model.weights=FILE"):
        read_weights(tmp_path / "gone.pth")


def test_missing_safetensors_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"safetensors is not installed"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["hello world", "{json: 1}", ""])
def test_a_text_is_no_file_of_weights(tmp_path, text):
    (tmp_path / "a.pth").write_text(text)
    with pytest.raises(DataError, match=r"only \(it is none that torch\.save or pickle wrote\); need tensors"):
        read_weights(tmp_path / "a.pth")
