"""The task: losses, extra losses, non-finite steps, the learning-rate finder, agreement with the runtime's cells."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from cellvision.bundle import Splitting
from cellvision.data.augment import Mixing, RandomCrop
from cellvision.data.datamodule import CellDataModule
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.errors import CellvisionError, ConfigError
from cellvision.metrics.cells import has_viability
from cellvision.models.build import build_model
from cellvision.training.callbacks import BestCheckpoint
from cellvision.training.checkpoint import AtomicCheckpointIO, load_net
from cellvision.training.finish import score_baseline
from cellvision.training.history import History
from cellvision.training.optim import Optim
from cellvision.training.scoring import Scores, build_true_cells
from cellvision.training.skipped_steps import MAX_SKIPPED_STEPS
from cellvision.training.task import SegmentationTask
from cellvision.training.validating import score_net

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def data() -> CellDataModule:
    module = CellDataModule(
        datasets={"all": SyntheticLiveDead(fields=8, height=64, width=64, cells=(3, 5))},
        fractions={"train": 0.5, "val": 0.5},
        augment={"crop": RandomCrop(size=32)},
        batch_size=2,
        workers=0,
    )
    module.setup()
    return module


def build(data: CellDataModule, **settings) -> SegmentationTask:
    net = build_model(name="unet", in_channels=3, classes=data.classes, kind="viability", widths=[4, 8])
    return SegmentationTask(net=net, optim=Optim(), splitting=Splitting(), **settings)


def build_trainer(tmp_path, **settings) -> Trainer:
    return Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": tmp_path,
            "plugins": [AtomicCheckpointIO()],
            **settings,
        }
    )


def test_fit_validates_and_its_checkpoint_rebuilds_the_net(data, tmp_path):
    task, trainer = build(data), build_trainer(tmp_path)
    trainer.fit(task, datamodule=data)
    scores = trainer.callback_metrics
    assert {"train/loss", "train/loss_distance", "val/loss", "val/pixel/miou", "val/cell/f1"} <= set(scores)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    net, record = load_net(tmp_path / "it.ckpt")
    assert torch.allclose(net.normalize.offset, torch.tensor(data.stats.offset))
    assert record.fingerprint == data.fingerprint()
    assert record.accuracy["val/pixel/miou"] == pytest.approx(float(scores["val/pixel/miou"]))
    assert [channel.name for channel in record.channels] == ["hoechst", "calcein", "pi"]


def test_a_score_without_a_value_is_not_that_of_an_earlier_epoch(data, tmp_path, monkeypatch):
    """Neither in the table of epochs nor where the best net is chosen."""
    task, history = build(data, monitor="val/cell/f1"), History(folder=tmp_path)
    compute, told = Scores.compute, []

    def miss(scores):
        told.append({name: value for name, value in compute(scores).items() if len(told) != 1 or name != "cell/f1"})
        return told[-1]

    monkeypatch.setattr(Scores, "compute", miss)
    best = BestCheckpoint(folder=tmp_path, monitor="val/cell/f1", mode="min")
    forget = Forget(best, before=1)
    callbacks = [history, best, forget]
    build_trainer(tmp_path, max_epochs=3, callbacks=callbacks, enable_checkpointing=True).fit(task, datamodule=data)
    assert ["val/cell/f1" in row for row in history.rows] == [True, False, True]
    assert all("val/pixel/miou" in row for row in history.rows)
    assert forget.scores == [None, pytest.approx(told[0]["cell/f1"]), None]
    assert best.score == pytest.approx(told[2]["cell/f1"])


class Forget(Callback):
    """Notes the best score before each epoch, and has it forgotten, as when the structure of a net changes."""

    def __init__(self, best, *, before):
        self.best, self.before, self.scores = best, before, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.scores.append(self.best.score)
        if trainer.current_epoch == self.before:
            self.best.forget(trainer)


def test_extra_losses_take_part(data, tmp_path):
    task, trainer = build(data), build_trainer(tmp_path)
    task.add_loss("teacher", lambda net, batch: torch.tensor(5.0) * len(batch.names))
    trainer.fit(task, datamodule=data)
    assert float(trainer.callback_metrics["train/loss_teacher"]) == 10.0
    with pytest.raises(ConfigError, match="a second loss 'teacher'"):
        task.add_loss("teacher", lambda net, batch: torch.tensor(1.0))


def test_single_bad_steps_are_skipped_and_many_stop_the_run(data, tmp_path):
    task = build(data)
    values = iter([float("nan"), 0.0])
    task.add_loss("odd", lambda *_: torch.tensor(next(values)))
    build_trainer(tmp_path).fit(task, datamodule=data)
    assert all(torch.isfinite(p).all() for p in task.parameters())
    task = build(data)
    task.add_loss("bad", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(CellvisionError, match=rf"{MAX_SKIPPED_STEPS} steps in a row .*bad=nan.*optim\.lr"):
        build_trainer(tmp_path, max_epochs=MAX_SKIPPED_STEPS).fit(task, datamodule=data)


def test_an_infinite_gradient_leaves_the_weights_as_they_are(data, tmp_path):
    task = build(data)
    before = {name: value.clone() for name, value in task.net.named_parameters()}

    def explode(net, batch):
        weight = next(net.parameters())
        return (weight.sum() * 0).abs().sqrt()  # the loss is 0, its gradient is not a number

    task.add_loss("odd", explode)
    build_trainer(tmp_path, limit_train_batches=3, gradient_clip_val=1.0).fit(task, datamodule=data)
    assert all(torch.equal(value, before[name]) for name, value in task.net.named_parameters())


def test_the_learning_rate_finder_sets_the_peak(data, tmp_path):
    from lightning.pytorch.tuner import Tuner

    task, trainer = build(data), build_trainer(tmp_path, max_epochs=20)
    found = Tuner(trainer).lr_find(task, datamodule=data, attr_name="lr", num_training=20)
    assert found is not None
    assert task.optim.lr == found.suggestion() != 1e-3


def test_bf16_and_clipping_and_accumulation_train(data, tmp_path):
    trainer = build_trainer(tmp_path, precision="bf16-mixed", gradient_clip_val=0.1, accumulate_grad_batches=2)
    trainer.fit(build(data), datamodule=data)
    assert trainer.global_step == 4  # 16 crops of 4 fields, 2 in a batch, 2 batches in a step
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_held_out_fields_are_scored_in_single_precision(data, tmp_path):
    class Keep(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, *_):
            fields.extend(outputs["fields"])

    fields, task = [], build(data)
    trainer = build_trainer(tmp_path, precision="bf16-mixed", callbacks=[Keep()])
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    task.eval()
    batches = list(data.test_dataloader())
    with torch.no_grad():
        exact = [image.numpy() for batch in batches for image in task.net(batch.images)["probabilities"]]
        with torch.autocast("cpu", torch.bfloat16):
            found = [field.probabilities for batch in batches for field in task.predict_fields(batch)]
            rough = [image.float().numpy() for batch in batches for image in task.net(batch.images)["probabilities"]]
    assert len(exact) == len(fields) == len(found) > 0
    for wanted, scored, predicted in zip(exact, fields, found, strict=True):
        np.testing.assert_array_equal(scored.probabilities, wanted)
        np.testing.assert_array_equal(predicted, wanted)
    assert any((one != other).any() for one, other in zip(exact, rough, strict=True))


def test_an_epoch_is_scored_as_steps_of_compression_score_the_net(data, tmp_path):
    """Both are compared where rounding alone is a rival of training with it: to the last digit, whatever trains it."""
    task = build(data)
    trainer = build_trainer(tmp_path, precision="bf16-mixed", max_epochs=1)
    trainer.fit(task, datamodule=data)
    exact = score_net(task, data.val_dataloader(workers=0))
    assert {name: float(trainer.callback_metrics[name]) for name in exact} == pytest.approx(
        exact, rel=1e-7, nan_ok=True
    )


def test_the_truth_as_a_prediction_scores_one(data):
    task = build(data).eval()
    batch = next(iter(data.val_dataloader()))
    field = task.net.decode(task.net.logits(batch.images))
    outputs = {name: value.detach().numpy() for name, value in field.items()}
    from cellvision.training.scoring import Scores, predict_field

    found = predict_field(task.net.spec, batch, 0, outputs, splitting=Splitting(), live_threshold=0.5)
    truth = build_true_cells(task.net.spec, found)
    scores = Scores(task.net.spec, mask_threshold=0.5)
    scores.cell.update(truth.label_image, truth.class_id, truth.p_live, found.true_label_image, found.true_cell_classes)
    assert scores.cell.compute()["cell/live_dead_f1"] == 1.0


def test_baselines_see_the_dead_stain_even_when_the_net_does_not(data):
    assert has_viability(data.classes)
    baseline = score_baseline(data, min_area_px=20, fields=9)
    scores = baseline.scores
    assert set(baseline.fields) == set(data.views["val"].names)
    assert scores["otsu_on_true_cells"]["cell/f1"] == 1.0
    assert 0 < scores["otsu"]["cell/f1"] < 1


def test_blended_images_are_refused_for_nets_that_find_cells():
    net = build_model(
        name="centermask2", in_channels=1, classes=["background", "cell"], backbone="vovnet19_slim_dw", fpn_channels=32
    )
    with pytest.raises(ConfigError, match=r"mixing\.mixup_probability=0\.2 for centermask2; need cells"):
        SegmentationTask(net=net, optim=Optim(), splitting=Splitting(), mixing=Mixing(mixup_probability=0.2))
