"""What a compression is compared with."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from cellvision.bundle import compute_sha256
from cellvision.delivery import choose_optim, deliver
from cellvision.errors import ConfigError


def test_no_report_compares_with_another_net_than_the_run_began_with(tmp_path):
    base = tmp_path / "best.ckpt"
    base.write_bytes(b"the net of the beginning")
    report = {"scratch": False, "ptq": []}
    cfg = OmegaConf.create({"ckpt": str(base), "ckpt_sha256": compute_sha256(base), "report": report})
    base.write_bytes(b"another one")
    task = SimpleNamespace(net=SimpleNamespace(spec=SimpleNamespace(exportable=True)))
    compression = SimpleNamespace(start=base)
    with pytest.raises(ConfigError, match="which the run began with; try: the same file again, or a new run_dir"):
        deliver(cfg, None, task, tmp_path, best=base, compression=compression)


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
