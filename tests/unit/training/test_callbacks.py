"""Progress in lines and bars, in runs that end after epochs, after steps, or not at all by themselves."""

import re
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from cellvision.training import callbacks
from cellvision.training.callbacks import BestCheckpoint, EpochBar, EpochLines, LastValidation, build_progress
from cellvision.training.phases import Phase

pytestmark = pytest.mark.filterwarnings("ignore")


class Nothing(LightningModule):
    """Four steps an epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        loss = (self.weight - 1).square().sum()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def train_dataloader(self):
        return DataLoader(torch.zeros(4, 1), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Nothing):
    """Notes the steps after which it was validated."""

    def __init__(self, phases=()):
        super().__init__()
        self.validated_at, self.phases = [], [Phase(name=str(at), epochs=each) for at, each in enumerate(phases)]

    def validation_step(self, batch, batch_idx):
        self.validated_at.append(self.trainer.global_step)
        self.log("val/score", float(self.trainer.global_step))

    def val_dataloader(self):
        return DataLoader(torch.zeros(1, 1), batch_size=1)


def fit(tmp_path, callback, **limits):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[callback], **limits,
    )  # fmt: skip
    trainer.fit(Nothing())


@pytest.mark.parametrize(
    ("limits", "counted"),
    [
        ({"max_epochs": 2}, ["epoch 1/2", "epoch 2/2"]),
        ({"max_epochs": -1, "max_steps": 6}, ["epoch 1  step 4/6", "epoch 2  step 6/6"]),
        ({"max_epochs": 2, "max_steps": 100}, ["epoch 1/2  step 4/100", "epoch 2/2  step 8/100"]),
    ],
)
def test_lines_count_what_ends_the_run(tmp_path, capsys, limits, counted):
    fit(tmp_path, EpochLines(), **limits)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == len(counted)
    for line, start in zip(lines, counted, strict=True):
        assert re.fullmatch(rf"{start}  train/loss \d\.\d{{4}}  \d+\.\d s/epoch, \d+ s left", line)
    assert lines[-1].endswith(", 0 s left")


@pytest.mark.parametrize(
    ("limits", "end"),
    [
        ({"max_epochs": -1, "max_steps": -1}, "15.0 s/epoch"),
        ({"max_epochs": 7, "max_steps": -1}, "15.0 s/epoch, 45 s left"),  # 3 epochs more
        (
            {"max_epochs": -1, "max_steps": 1000},
            "15.0 s/epoch, 30 s left",
        ),  # 400 steps took 30 s, and there are 400 more
        ({"max_epochs": 100, "max_steps": 1000}, "15.0 s/epoch, 30 s left"),
    ],
)
def test_time_left_is_reckoned_from_what_this_part_of_a_run_has_done(monkeypatch, capsys, limits, end):
    """A run resumed after 2 epochs and 200 of its steps, 2 epochs and 30 s later."""
    clock = iter([1000.0, 1030.0])
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    lines, module = EpochLines(), Nothing()
    run = {"is_global_zero": True, "callback_metrics": {}, **limits}
    lines.on_train_start(SimpleNamespace(current_epoch=2, global_step=200, **run), module)
    lines.on_train_epoch_end(SimpleNamespace(current_epoch=3, global_step=600, **run), module)
    assert capsys.readouterr().out.strip().endswith(end)


def test_lines_show_scores_of_their_own_epoch_only(capsys):
    lines, module = EpochLines(), Nothing()
    run = {"is_global_zero": True, "callback_metrics": {"val/loss": 0.5}, "max_epochs": 5, "max_steps": -1}
    lines.on_train_start(SimpleNamespace(current_epoch=0, global_step=0, **run), module)
    for epoch in range(3):
        trainer = SimpleNamespace(current_epoch=epoch, global_step=epoch + 1, **run)
        if epoch == 1:
            lines.on_validation_end(trainer, module)
        lines.on_train_epoch_end(trainer, module)
    assert ["val/loss" in line for line in capsys.readouterr().out.splitlines()] == [False, True, False]


def test_lines_can_be_switched_off(tmp_path, capsys):
    lines = EpochLines()
    lines.disable()
    fit(tmp_path, lines, max_epochs=1)
    assert "epoch" not in capsys.readouterr().out


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(monkeypatch):
    monkeypatch.setattr(callbacks, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True)))
    assert isinstance(build_progress(), EpochBar)
    monkeypatch.setattr(callbacks, "sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: False)))
    assert isinstance(build_progress(), EpochLines)


@pytest.mark.parametrize(
    ("limits", "described"),
    [({"max_epochs": 2}, ["Epoch 0/1", "Epoch 1/1"]), ({"max_epochs": -1, "max_steps": 6}, ["Epoch 0", "Epoch 1"])],
)
def test_the_bar_names_no_planned_epoch_where_there_is_none(tmp_path, limits, described):
    told = []

    class Listening(EpochBar):
        def _get_train_description(self, current_epoch):
            told.append(super()._get_train_description(current_epoch).strip())
            return told[-1]

    fit(tmp_path, Listening(), **limits)
    assert list(dict.fromkeys(told)) == described


@pytest.mark.parametrize("is_here", [True, False])
def test_a_restored_score_counts_where_its_net_is(tmp_path, is_here):
    """A run resumed in another folder has no best net there; any epoch that follows is the best so far."""
    best = BestCheckpoint(folder=tmp_path, monitor="val/score")
    best.load_state_dict({"score": 0.9})
    if is_here:
        best.path.write_bytes(b"")
    saved = []
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(broadcast=lambda value: value), is_global_zero=True,
        callback_metrics={"val/score": torch.tensor(0.5)}, save_checkpoint=saved.append,
    )  # fmt: skip
    best.on_fit_start(trainer, Nothing())
    best.on_validation_end(trainer, Nothing())
    best.on_train_epoch_end(trainer, Nothing())
    assert saved == ([] if is_here else [best.path])
    assert best.score == (0.9 if is_here else 0.5)


def fit_validated(tmp_path, *, every, resume=None, phases=(), **limits):
    best = BestCheckpoint(folder=tmp_path, monitor="val/score")
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=tmp_path, callbacks=[best, LastValidation()],
        check_val_every_n_epoch=every, **limits,
    )  # fmt: skip
    module = Validated(phases)
    trainer.fit(module, ckpt_path=resume)
    return module.validated_at, best


@pytest.mark.parametrize(
    ("every", "limits", "steps"),
    [
        (4, {"max_epochs": 2}, [8]),
        (2, {"max_epochs": 5}, [8, 16, 20]),
        (1, {"max_epochs": 2}, [4, 8]),
        (1, {"max_epochs": -1, "max_steps": 6}, [4, 6]),
        (4, {"max_epochs": -1, "max_steps": 6}, [6]),
        (4, {"max_epochs": 2, "accumulate_grad_batches": 3}, [4]),
    ],
)
def test_the_end_of_a_run_is_validated_once_whatever_the_interval(tmp_path, every, limits, steps):
    validated_at, best = fit_validated(tmp_path, every=every, **limits)
    assert validated_at == steps
    assert best.score == steps[-1]
    assert best.path.is_file()


def test_a_resumed_run_is_validated_at_its_own_end(tmp_path):
    _, best = fit_validated(tmp_path, every=2, max_epochs=1)
    validated_at, best = fit_validated(tmp_path, every=2, max_epochs=3, resume=best.path)
    assert validated_at == [8, 12]
    assert best.score == 12


@pytest.mark.parametrize(
    ("every", "limits", "steps"),
    [
        (9, {}, [4, 16, 24]),
        (3, {}, [4, 12, 16, 24]),
        (1, {}, [4, 8, 12, 16, 20, 24]),
        (None, {"val_check_interval": 5}, [4, 5, 10, 15, 16, 20, 24]),  # every fifth step
        (1, {"limit_val_batches": 0}, []),
    ],
)
def test_the_end_of_each_phase_is_validated_once_whatever_the_interval(tmp_path, every, limits, steps):
    validated_at, best = fit_validated(tmp_path, every=every, phases=(1, 3, 2), max_epochs=6, **limits)
    assert validated_at == steps
    assert best.score == (24 if steps else None)


@pytest.mark.parametrize("is_lead", [True, False])
def test_a_net_of_another_structure_is_no_best_one_any_more(tmp_path, is_lead):
    best = BestCheckpoint(folder=tmp_path, monitor="val/score")
    best.begin_phase("prune")
    best.score = 0.9
    best.path.write_bytes(b"")
    best.forget(SimpleNamespace(is_global_zero=is_lead))
    assert best.score is None
    assert best.path.is_file() != is_lead
