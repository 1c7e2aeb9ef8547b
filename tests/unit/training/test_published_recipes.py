"""The published recipes among the experiments: their numbers as published, and a few steps of each as a whole run."""

import csv
import json
from pathlib import Path

import hydra
import imagecodecs
import numpy as np
import pytest
import torch
from torch import nn

from cellvision import app
from cellvision.data.coco import write_coco, write_coco_folder
from cellvision.data.synthetic import SyntheticCells
from cellvision.errors import ConfigError
from cellvision.models.build import build_model
from cellvision.training.checkpoint import load_net

CONF = Path(__file__).parents[3] / "conf"
RECIPES = {  # steps, where the learning rate falls, shorter sides, longest side
    "centermask2_1x": (90_000, (60_000, 80_000), range(640, 801, 32), 1333),
    "centermask2_coco_3x": (270_000, (210_000, 250_000), range(640, 801, 32), 1333),
    "centermask2_lite_coco_4x": (360_000, (300_000, 340_000), (580, 600), 1000),
    "centermask2_livecell": (100_000, (80_000, 90_000), (440, 480, 520, 560, 580, 620), 1333),
    "centermask2_lite_sartorius": (10_000, (8_000, 9_000), (440, 480, 520, 560, 580, 620), 1333),
}
PUBLISHED_GREY = (123.675 + 116.28 + 103.53) / 3
TINY = {"backbone": "vovnet19_slim_dw", "fpn_channels": 32, "class_convs": 1, "box_convs": 1, "mask_convs": 1}
SMALL_RUN = [
    "trainer=cpu", "trainer.max_steps=2", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1",
    "data.batch_size=2", "data.workers=0", "data.augment.resize.sizes=[48,64]", "data.augment.resize.max_size=96",
    "model.pretrained=false", "logger=csv", "bundle=false", "predict=0",
    *(f"model.{key}={value}" for key, value in TINY.items()),
]  # fmt: skip


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


@pytest.mark.parametrize("experiment", RECIPES)
def test_the_schedule_is_the_published_one(experiment):
    """Oracle: torch's MultiStepLR after a linear rise, compared around the steps where the rate changes."""
    steps, falls, sizes, longest = RECIPES[experiment]
    cfg = compose(f"experiment={experiment}")
    assert cfg.trainer.max_steps == steps
    optim = app.build(cfg.optim, "optim").scale_lr(16)
    optimizer = optim.build_optimizer(nn.Conv2d(1, 1, 3))
    schedule = optim.build_schedules(optimizer, total_steps=steps, monitor="", mode="max")[0]["scheduler"].lr_lambdas[0]
    oracle = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), falls, 0.1)
    for step in (1000, falls[0] - 1, falls[0] + 1, falls[1] - 1, falls[1] + 1, steps - 1):
        oracle.optimizer.param_groups[0]["lr"], oracle.last_epoch = 1.0, step
        assert schedule(step) == pytest.approx(oracle._get_closed_form_lr()[0]), step
    assert schedule(500) == pytest.approx(0.505)
    assert (schedule(999) < 1.0, schedule(1000)) == (True, 1.0)
    assert (optim.name, optim.momentum, optim.weight_decay, optim.lr) == ("sgd", 0.9, 1e-4, 0.01)
    resize = app.build(cfg.data.augment.resize, "data.augment.resize")
    assert (list(resize.sizes), resize.max_size) == (list(sizes), longest)


@pytest.mark.parametrize("experiment", RECIPES)
@pytest.mark.parametrize(("images", "lr"), [(2, 0.00125), (16, 0.01), (64, 0.04)])
def test_the_learning_rate_follows_the_batch(experiment, images, lr):
    optim = app.build(compose(f"experiment={experiment}").optim, "optim")
    assert optim.scale_lr(images).lr == pytest.approx(lr)


def test_a_choice_on_the_command_line_wins_over_that_of_the_recipe():
    cfg = compose("experiment=centermask2_lite_coco_4x", "trainer=cpu", "optim=adamw", "model=centermask2")
    assert cfg.trainer.accelerator == "cpu"
    assert (cfg.optim.name, cfg.optim.get("reference_batch")) == ("adamw", None)
    assert cfg.model.fpn_channels is None


def test_livecell_asks_for_weights_that_only_a_file_has():
    cfg = compose("experiment=centermask2_livecell")
    with pytest.raises(
        ConfigError, match=r"model\.pretrained=true for model\.backbone=vovnet99; .*model\.weights=FILE"
    ):
        app.build(cfg.model, "model", in_channels=1, classes=["background", "cell"])


def write_own(root, cells):
    return write_coco_folder(cells, root, splits={"train": [0, 1, 2, 3], "val": [4, 5]})


def write_coco_2017(root, cells):
    for split, fields in {"train2017": [0, 1, 2, 3], "val2017": [4, 5]}.items():
        folder = write_coco_folder(cells, root / "_" / split, splits={split: fields})
        (folder / "images").rename(root / split)
        (root / "annotations").mkdir(exist_ok=True)
        (folder / f"instances_{split}.json").rename(root / "annotations" / f"instances_{split}.json")
    return root


def write_livecell(root, cells):
    folder = write_coco_folder(cells, root / "_", splits={"train": [0, 1, 2], "val": [3, 4], "test": [5]})
    (root / "images").mkdir()
    (folder / "images").rename(root / "images" / "livecell_train_val_images")
    (root / "annotations" / "LIVECell").mkdir(parents=True)
    for split, fields in {"train": [0, 1, 2], "val": [3, 4], "test": [5]}.items():
        path = root / "annotations" / "LIVECell" / f"livecell_coco_{split}.json"
        write_coco(path, (cells.sample(i) for i in fields), classes=cells.classes, annotations_by_id=True)
    return root


def write_sartorius(root, cells):
    (root / "train").mkdir(parents=True)
    lines = ["id,annotation,width,height,cell_type,sample_id"]
    for index, name in enumerate(cells.names):
        sample = cells.sample(index)
        (root / "train" / f"{name}.png").write_bytes(imagecodecs.png_encode(sample.image[0]))
        for number in np.unique(sample.label_image)[1:]:
            edges = np.flatnonzero(np.diff(np.pad(sample.label_image.ravel() == number, 1).astype(int)))
            runs = " ".join(f"{a + 1} {b - a}" for a, b in edges.reshape(-1, 2))
            kind = cells.classes[sample.cell_classes[number - 1]]
            lines.append(f"{name},{runs},{sample.image.shape[2]},{sample.image.shape[1]},{kind},{name}")
    (root / "train.csv").write_text("\n".join(lines))
    return root


def write_weights(path):
    """A file as published ones are, of a small net for red, green and blue whose norms have seen images."""
    torch.manual_seed(0)
    net = build_model(name="centermask2", in_channels=3, classes=["background", "cell"], norm="batch", **TINY)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    net.detector.encode(torch.randint(-120, 136, (4, 3, 64, 96)).float())
    torch.save({"model": net.detector.state_dict()}, path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("experiment", "write", "types", "given"),
    [
        ("centermask2_1x", write_own, ("cell",), ["data=coco"]),
        ("centermask2_coco_3x", write_coco_2017, ("cat", "dog"), []),
        ("centermask2_lite_coco_4x", write_coco_2017, ("cat", "dog"), []),
        ("centermask2_livecell", write_livecell, ("cell",), ["data.overlap=first"]),
        ("centermask2_lite_sartorius", write_sartorius, ("astro", "cort", "shsy5y"), []),
    ],
)
def test_two_steps_of_every_recipe(tmp_path, experiment, write, types, given):
    cells = SyntheticCells(fields=6, height=64, width=88, cells=(8, 12), cell_types=types)
    root = write(tmp_path / "data", cells)
    write_weights(tmp_path / "weights.pth")
    cfg = compose(
        f"experiment={experiment}", *SMALL_RUN, *given, f"data.root={root}", f"run_dir={tmp_path / 'run'}",
        f"model.weights={tmp_path / 'weights.pth'}",
    )  # fmt: skip
    app.train(cfg)
    assert "mask/ap" in json.loads((tmp_path / "run" / "results.json").read_text())["held_out"]
    epoch = next(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert 0 < float(epoch["train/loss"]) < 100
    assert float(epoch["lr"]) == pytest.approx(0.01 * 2 / 16 * 0.01)  # for 2 images, after both falls
    net, _ = load_net(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert net.settings.norm == "frozen"
    assert net.spec.classes == ("background", *types)
    mean, std = (128.0, 11.578) if experiment == "centermask2_livecell" else (PUBLISHED_GREY, 1.0)
    assert net.normalize.offset.tolist() == pytest.approx([mean], rel=1e-5)
    assert net.normalize.scale.tolist() == pytest.approx([std], rel=1e-5)
