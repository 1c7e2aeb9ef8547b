"""What a compression is compared with."""

import json
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from cellvision.bundle import compute_sha256
from cellvision.delivery import deliver
from cellvision.errors import ConfigError
from cellvision.export.compressed.narrowing import NoSuchWidthError
from cellvision.small_net import choose_optim, count_epochs, list_starts


def test_no_report_compares_with_another_net_than_the_run_began_with(tmp_path):
    base = tmp_path / "best.ckpt"
    base.write_bytes(b"the net of the beginning")
    report = {"scratch": False, "ptq": []}
    cfg = OmegaConf.create({"ckpt": str(base), "ckpt_sha256": compute_sha256(base), "report": report})
    base.write_bytes(b"another one")
    task = SimpleNamespace(net=SimpleNamespace(spec=SimpleNamespace(exportable=True)))
    compression = SimpleNamespace(start=base, steps=[])
    with pytest.raises(ConfigError, match="which the run began with; try: the same file again, or a new run_dir"):
        deliver(cfg, None, task, tmp_path, best=base, compression=compression)


def test_a_compression_that_kept_no_net_is_a_fault(tmp_path):
    task = SimpleNamespace(monitor="val/mask/ap")
    with pytest.raises(ConfigError, match=r"no best net in .*: no epoch had a score of val/mask/ap, .*; need "):
        deliver(None, None, task, tmp_path, best=None, compression=SimpleNamespace())


def test_a_report_is_there_also_where_no_small_net_is_as_fast(tmp_path, monkeypatch, capsys):
    """Times vary on a machine that does other work; hours of compression are not to be lost by that."""
    base = tmp_path / "best.ckpt"
    base.write_bytes(b"the net of the beginning")
    (tmp_path / "bundle").mkdir()

    def report(rows, folder, **_):
        (folder / "prune").mkdir(parents=True)
        (folder / "prune" / "graph.onnx").touch()
        return SimpleNamespace(raise_if_lost=lambda: None)

    def search(*_, **__):
        raise NoSuchWidthError("no width")

    rows = [SimpleNamespace(name=name, role="step") for name in ("base", "prune")]
    monkeypatch.setattr("cellvision.small_net.train_scratch", search)
    static = []
    monkeypatch.setattr("cellvision.export.compressed.rows.list_rows", lambda *_, **given: static.append(given) or rows)
    monkeypatch.setattr("cellvision.export.quantize.calibration.collect_training_fields", lambda *_: ())
    monkeypatch.setattr("cellvision.export.compressed.report.report_compression", report)
    settings = {"scratch": True, "ptq": ["scratch"], "samples": 1, "tolerance_points": 1.0, "calibration_fields": 1}
    cfg = OmegaConf.create({"ckpt_sha256": compute_sha256(base), "report": settings, "predict": 0})
    task = SimpleNamespace(net=SimpleNamespace(spec=SimpleNamespace(exportable=True)))
    data = SimpleNamespace(collect_held_out=lambda count: [])
    compression = SimpleNamespace(start=base, steps=[SimpleNamespace(name=name) for name in ("prune", "quantize")])
    with pytest.raises(NoSuchWidthError):
        deliver(cfg, data, task, tmp_path, best=base, compression=compression)
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["graph.onnx"]
    assert static == [{"base": base, "phases": ["prune", "quantize"], "scratch": None, "static": ()}]
    said = capsys.readouterr().out
    assert "scratch   none: no width" in said
    assert "report    without quantize: their nets are in the folder that the run was resumed from" in said


def test_a_fresh_net_learns_as_the_uncompressed_one_did(tmp_path):
    cfg = OmegaConf.create({"optim": {"lr": 5e-4}})
    start = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert choose_optim(cfg, None) == (cfg.optim, "this run")
    assert choose_optim(cfg, start) == (cfg.optim, "this run")
    record = tmp_path / "run" / "run.json"
    record.parent.mkdir()
    for text in ("{", "[]", '{"settings": {}}', '{"settings": {"optim": {"lr": "${x}"}}}'):
        record.write_text(text)
        assert choose_optim(cfg, start) == (cfg.optim, "this run")
    record.write_text(json.dumps({"settings": {"optim": {"lr": 1e-3}}}))
    assert choose_optim(cfg, start) == ({"lr": 1e-3}, str(record))


def save_run(folder, *, steps, ckpt=None):
    """A run of so many steps, which began with a checkpoint or a fresh net; its best checkpoint."""
    best = folder / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    torch.save({"global_step": steps}, best)
    settings = {} if ckpt is None else {"ckpt": str(ckpt)}
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    return best


def test_all_the_training_behind_a_compressed_net_counts(tmp_path, capsys):
    first = save_run(tmp_path / "trained", steps=45)
    second = save_run(tmp_path / "compressed", steps=30, ckpt=first)
    third = save_run(tmp_path / "again", steps=8, ckpt=second)
    assert list_starts(third) == [third, second, first]
    assert list_starts(None) == []
    trainer = SimpleNamespace(num_training_batches=20, accumulate_grad_batches=2)
    assert [count_epochs(start, trainer) for start in (third, second, first)] == [1, 3, 5]
    assert capsys.readouterr().out == ""
    first.unlink()
    assert list_starts(third) == [third, second]
    assert capsys.readouterr().out == f"scratch   {first} is no file any more: its epochs are not counted\n"
