"""Checkpoints: atomic, weights only, rebuilt from their record."""

import copy
import errno
import io
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from cellvision.bundle import Channel, Splitting, compute_sha256
from cellvision.errors import BundleError, ConfigError, DataError
from cellvision.models.build import build_model
from cellvision.training.checkpoint import (
    AtomicCheckpointIO,
    check_start,
    choose_resume,
    find_newest_checkpoint,
    load_net,
    load_plain_checkpoint,
    remove_drafts,
)
from cellvision.training.net_record import RECORD_KEY, NetRecord


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_model(name="unet", in_channels=2, classes=("background", "live", "dead"), widths=(4, 8)).eval()


def save(net, path: Path) -> Path:
    record = NetRecord(
        net=net.config,
        channels=(Channel(name="hoechst", role="nuclear"), Channel(name="pi", role="dead")),
        image_dtypes=("float32", "uint16"),
        pixel_size_um=0.5,
        splitting=Splitting(min_area_px=7),
        live_threshold=0.4,
        nucleus_margin_px=2,
        fingerprint="abc",
        accuracy={"val/loss": 0.5},
    )
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({RECORD_KEY: record.to_plain(), "state_dict": state}, path)
    return path


def test_net_and_record_come_back(net, tmp_path):
    loaded, record = load_net(save(net, tmp_path / "best.ckpt"))
    image = torch.rand(1, 2, 33, 31)
    with torch.no_grad():
        before, after = net(image), loaded(image)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert record.channels[1] == Channel(name="pi", role="dead")
    assert record.splitting == Splitting(min_area_px=7)
    assert record.pixel_size_um == 0.5


class Attack:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "evil": Attack()}, tmp_path / "evil.ckpt")
    with pytest.raises(DataError, match=r"evil\.ckpt cannot be loaded as weights only"):
        load_plain_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04" + bytes(range(256)), pickle.dumps({"a": 1})])
def test_damaged_files_are_named(content, tmp_path):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.ckpt"):
        load_plain_checkpoint(path)


def test_every_truncation_is_refused(net, tmp_path):
    whole = save(net, tmp_path / "whole.ckpt").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path = tmp_path / "cut.ckpt"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=r"cut\.ckpt"):
            load_plain_checkpoint(path)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_draft(net, tmp_path, monkeypatch):
    path = save(net, tmp_path / "last.ckpt")
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match=r"No space left on device.*previous checkpoint is untouched"):
        AtomicCheckpointIO().save_checkpoint({"x": 1}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_keeps_the_old_file_and_is_told(net, room, tmp_path, monkeypatch):
    """As torch meets it: while it writes, which it reports as an error of its own."""
    path = save(net, tmp_path / "last.ckpt")
    before = path.read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda file, mode: Full(file, mode))
    with pytest.raises(DataError, match=r"last\.ckpt \(No space left on device\); need .*checkpoint is untouched"):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10_000)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_every_flipped_bit_is_found(net, tmp_path):
    whole = save(net, tmp_path / "whole.ckpt").read_bytes()
    weight = net.head.weight.detach().numpy().tobytes()
    assert whole.count(weight) == 1
    path = tmp_path / "flipped.ckpt"
    for bit in range(8):
        flipped = bytearray(whole)
        flipped[whole.index(weight)] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"flipped\.ckpt .*has changed since it was written"):
            load_plain_checkpoint(path)


def test_flipped_bits_at_the_end_are_told_or_mean_nothing(net, tmp_path):
    """Where the archive's list of files lies is written there: a wrong place is answered by the system."""
    whole = save(net, tmp_path / "whole.ckpt").read_bytes()
    known = load_plain_checkpoint(tmp_path / "whole.ckpt")
    path, refused = tmp_path / "flipped.ckpt", 0
    for at in range(len(whole) - 98, len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 0x80
        path.write_bytes(flipped)
        try:
            found = load_plain_checkpoint(path)
        except DataError:
            refused += 1
        else:
            assert found[RECORD_KEY] == known[RECORD_KEY]
            assert found["state_dict"].keys() == known["state_dict"].keys()
            assert all(torch.equal(found["state_dict"][name], value) for name, value in known["state_dict"].items())
    assert 20 < refused < 98


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_file_that_the_system_does_not_let_be_read_is_not_called_damaged(net, number, tmp_path, monkeypatch):
    """Else a run would go on from an earlier one, as if the newest were lost."""
    save(net, tmp_path / "previous.ckpt")
    path = save(net, tmp_path / "last.ckpt")
    place, whole = (torch, torch.load) if number == errno.EIO else (Path, Path.open)

    def fail(given, *more, **named):
        if given == path:
            raise OSError(number, os.strerror(number), str(path))
        return whole(given, *more, **named)

    monkeypatch.setattr(place, whole.__name__, fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        find_newest_checkpoint(tmp_path)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(net, tmp_path):
    for name in ("last.ckpt", "previous.ckpt", "prune.ckpt"):
        (tmp_path / name).write_bytes(save(net, tmp_path / "whole.ckpt").read_bytes()[:-50])
    with pytest.raises(DataError, match=r"no last\.ckpt or previous\.ckpt that can be read; .* prune\.ckpt, whole"):
        choose_resume("auto", tmp_path)
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(DataError, match=r"no last\.ckpt or previous\.ckpt that can be read"):
        choose_resume("auto", tmp_path)


LIGHTNING = {
    "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {"BestCheckpoint": {"score": 0.5}},
    "optimizer_states": [{"state": {}}],
    "lr_schedulers": [{"last_epoch": 3}],
}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("loops",), None, "without its loops; need a checkpoint as train.py wrote it"),
        (("loops",), {}, "without its loops"),
        (("loops",), {"other": {}}, "without its loops"),
        (("optimizer_states",), {}, "without its optimizer_states"),
        (("optimizer_states",), [], "without its optimizer_states"),
        (("lr_schedulers",), [], "without its lr_schedulers"),
        (("callbacks", "BestCheckpoint"), 3, "without its BestCheckpoint"),
        (("callbacks", "BestCheckpoint"), {}, "without its BestCheckpoint"),
        (("optimizer_states",), [3], "without its optimizer_states"),
        (("lr_schedulers",), [{}], "without its lr_schedulers"),
        (("loops", "fit_loop"), {}, "without its loops"),
        (("state_dict",), [1], "without its state_dict"),
        ((RECORD_KEY, "fingerprint"), None, r"the record of .* has fingerprint=None"),
        ((RECORD_KEY, "recipe"), 3, "does not fit its own record"),
        ((RECORD_KEY, "recipe"), ({"step": "prune"},), "does not fit its own record"),
        ((RECORD_KEY, "settings"), [1], r"the record of .* has settings=\[1\]"),
        ((RECORD_KEY,), {}, "does not fit its own record"),
        ((RECORD_KEY,), [], "does not fit its own record"),
    ],
)
def test_a_run_is_not_resumed_from_what_is_not_whole(net, place, value, said, tmp_path):
    path = save(net, tmp_path / "last.ckpt")
    plain = part = load_plain_checkpoint(path) | copy.deepcopy(LIGHTNING) | {"pytorch-lightning_version": "2.6.0"}
    AtomicCheckpointIO().save_checkpoint(plain, path)
    assert choose_resume("auto", tmp_path) == choose_resume(str(path), tmp_path) == str(path)
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    AtomicCheckpointIO().save_checkpoint(plain, path)
    with pytest.raises(DataError, match=said):
        choose_resume(str(path), tmp_path)


def test_weights_of_another_structure_are_explained(net, tmp_path):
    path = save(net, tmp_path / "best.ckpt")
    plain = load_plain_checkpoint(path)
    plain[RECORD_KEY]["net"]["widths"] = [4, 16]
    torch.save(plain, path)
    with pytest.raises(DataError, match="does not fit its own record"):
        load_net(path)


@pytest.mark.parametrize("end", ["head.weight", "running_var", "normalize.scale"])
def test_weights_that_are_no_numbers_are_refused(net, end, tmp_path):
    path = save(net, tmp_path / "best.ckpt")
    plain = load_plain_checkpoint(path)
    name = next(key for key in plain["state_dict"] if key.endswith(end))
    plain["state_dict"][name].view(-1)[0] = torch.inf
    torch.save(plain, path)
    with pytest.raises(DataError, match=rf"best\.ckpt with .*{end} that is not finite; need .*; try: an earlier"):
        load_net(path)


@pytest.mark.parametrize("recipe", ["abc", [5], 7])
def test_a_recipe_that_is_none_is_explained(net, recipe, tmp_path):
    path = save(net, tmp_path / "best.ckpt")
    plain = load_plain_checkpoint(path)
    plain[RECORD_KEY]["recipe"] = recipe
    torch.save(plain, path)
    with pytest.raises(DataError, match=r"does not fit its own record|the record of .* has recipe="):
        load_net(path)


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("live_threshold", "x", "live_threshold='x'; need a number between 0 and 1"),
        ("live_threshold", float("nan"), "live_threshold=nan; need a number between 0 and 1"),
        ("pixel_size_um", -1, "pixel_size_um=-1; need "),
        ("image_dtypes", [], "image_dtypes=(); need different ones of "),
        ("image_dtypes", ["foo"], "image_dtypes=('foo',); need different ones of "),
        ("channels", [{"name": "a", "role": 5}], "channels.role=(5,); need "),
        ("nucleus_margin_px", -1, "nucleus_margin_px=-1; need "),
        ("splitting", {"seed_threshold": 2}, "splitting.seed_threshold=2; need "),
        ("accuracy", [1], "accuracy=[1]; need names with values"),
        ("settings", None, "settings=None; need names with values"),
        ("fingerprint", 5, "fingerprint=5; need a text"),
        ("long_cell_px", 0.5, "long_cell_px=0.5; need a whole number"),
    ],
)
def test_an_entry_out_of_place_is_named(net, entry, value, said, tmp_path):
    path = save(net, tmp_path / "best.ckpt")
    plain = load_plain_checkpoint(path)
    plain[RECORD_KEY][entry] = value
    torch.save(plain, path)
    with pytest.raises(DataError, match=re.escape(f"the record of {path} has {said}")):
        load_net(path)


@pytest.mark.parametrize(
    "entries", [{"options": None}, {"options": "abc"}, {"masks": 5}, {"masks": [1, 2]}, {"masks": ["nothere"]}]
)
def test_an_entry_of_a_step_out_of_place_is_named(net, entries, tmp_path):
    path = save(net, tmp_path / "best.ckpt")
    plain = load_plain_checkpoint(path)
    plain[RECORD_KEY]["recipe"] = [{"step": "prune", "widths": {}, "groups": {}, **entries}]
    torch.save(plain, path)
    ((name, value),) = entries.items()
    with pytest.raises(DataError, match=re.escape(f"its own record ({name}={value!s}"[:-3])):
        load_net(path)


@pytest.mark.parametrize("weights", [None, [1, 2], 5])
def test_weights_that_have_no_names_are_explained(net, weights, tmp_path):
    path = save(net, tmp_path / "best.ckpt")
    torch.save({**load_plain_checkpoint(path), "state_dict": weights}, path)
    with pytest.raises(DataError, match="does not fit its own record"):
        load_net(path)


def test_other_files_are_no_checkpoint(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="has no 'cellvision' record"):
        load_net(tmp_path / "other.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(DataError, match="holds a list"):
        load_net(tmp_path / "list.ckpt")
    with pytest.raises(DataError, match="no checkpoint"):
        load_net(tmp_path / "missing.ckpt")


def test_resume_passes_over_a_damaged_newest_checkpoint(net, tmp_path, capsys):
    assert find_newest_checkpoint(tmp_path) is None
    previous = save(net, tmp_path / "previous.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"half a file")
    assert find_newest_checkpoint(tmp_path) == previous
    assert "last.ckpt" in capsys.readouterr().err
    last = save(net, tmp_path / "last.ckpt")
    assert find_newest_checkpoint(tmp_path) == last


def test_drafts_of_killed_runs_are_removed(net, tmp_path):
    kept = save(net, tmp_path / "last.ckpt")
    (tmp_path / ".last.ckpt.123.tmp").write_bytes(b"half")
    remove_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_run_goes_on_with_the_checkpoint_that_it_began_with(tmp_path):
    first, moved, other = (tmp_path / name for name in ("first.ckpt", "moved.ckpt", "other.ckpt"))
    first.write_bytes(b"net")
    moved.write_bytes(b"net")
    other.write_bytes(b"another net")
    before = {"ckpt": str(first), "ckpt_sha256": compute_sha256(first)}
    check_start(before, moved)
    check_start({}, other)  # nothing is known
    known = f"need {first} with SHA-256 {before['ckpt_sha256'][:12]}.., which the run began with"
    with pytest.raises(ConfigError) as caught:
        check_start(before, other)
    assert str(caught.value) == (
        f"ckpt={other} with SHA-256 {compute_sha256(other)[:12]}..; {known}; try: ckpt={first}, or a new run_dir"
    )
    first.unlink()
    with pytest.raises(ConfigError) as caught:
        check_start(before, first)
    assert str(caught.value) == f"ckpt={first}, which is no file; {known}; try: the same file again, or a new run_dir"


def test_what_no_bundle_could_hold_is_refused_before_it_is_trained():
    given = {"net": {}, "channels": (Channel(name="a"),), "image_dtypes": ("uint8",), "splitting": Splitting()}
    with pytest.raises(BundleError, match=r"pixel_size_um=6\.5e-07; need a number of micrometres"):
        NetRecord(**given, pixel_size_um=6.5e-7, live_threshold=0.5, nucleus_margin_px=0, fingerprint="")
