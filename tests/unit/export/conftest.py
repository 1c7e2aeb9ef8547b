"""A net small enough to export in a second, with everything a real one has: padding, levels, two outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cellvision.bundle import Channel, Splitting
from cellvision.export.onnx import export_onnx
from cellvision.models.base import NetSpec, SegNet
from cellvision.types import IMAGE_DTYPES, Sample

CLASSES = ("background", "live", "dead")


class TinyNet(nn.Module):
    """Bright blobs are cells: weights are set by hand where it matters, so that there is something to count."""

    part, detecting = SegNet.part, None
    is_shared = False  # whether its graphs are made once for all tests

    def __init__(self, *, kind="viability", channels=2, tiles=True):
        super().__init__()
        outputs = ("probabilities", "distance") if kind == "viability" else ("probabilities",)
        self.spec = NetSpec(
            name="tiny", kind=kind, in_channels=channels, classes=CLASSES, stride=4, outputs=outputs, tiles=tiles
        )
        self.config = {"name": "tiny"}
        self.fine = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.coarse = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        height, width = images.shape[-2:]
        x = (images.to(torch.float32) - 100.0) / 50.0
        rows, columns = (height + 3) // 4 * 4, (width + 3) // 4 * 4
        x = F.pad(x, (0, columns - width, 0, rows - height), mode="replicate")
        fine = self.drop(F.relu(self.norm(self.fine(x))))
        coarse = F.interpolate(self.coarse(F.max_pool2d(fine, 4)), scale_factor=4, mode="bilinear")
        y = self.head(torch.cat([fine, coarse], 1))
        # The image itself decides on the foreground, so that cells are where the blobs are.
        y = torch.cat([y[:, :1] - 3 * x.mean(1, keepdim=True), y[:, 1:]], 1)[..., :height, :width]
        results = {"distance": torch.sigmoid(4 * x[:, :1, :height, :width] - 4 + 0.1 * y[:, 3:])}
        results["probabilities"] = torch.softmax(y[:, :3], 1)
        return {name: results[name] for name in reversed(self.spec.outputs)}  # not in the declared order


def build_sample(name="field_1", *, dtype="uint16", channels=2, size=(150, 131), seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(60, 5, (channels, *size))
    ys, xs = np.mgrid[: size[0], : size[1]]
    for y, x in zip(rng.integers(10, size[0] - 10, 20), rng.integers(10, size[1] - 10, 20), strict=True):
        image += 120 * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 18)
    return Sample(
        name=name,
        group=name,
        image=np.clip(image, 0, 255).astype(dtype),
        label_image=np.zeros(size, np.int32),
        cell_classes=np.zeros(0, np.int64),
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Nets this small are slower on more threads, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def net():
    torch.manual_seed(0)
    built = TinyNet()
    built.norm.running_var.fill_(2.0)
    built.is_shared = True
    return built.eval()


@pytest.fixture(scope="session")
def graphs(net, tmp_path_factory):
    """Graph file of ``net`` for every input dtype; an export takes seconds, so tests share these."""
    folder = tmp_path_factory.mktemp("graphs")
    return {dtype: export_onnx(net, folder / f"{dtype}.onnx", input_dtype=dtype) for dtype in IMAGE_DTYPES}


@pytest.fixture(scope="session")
def samples():
    return [build_sample(), build_sample("field_2", size=(90, 60), seed=1)]


@pytest.fixture
def facts(samples):
    """Arguments of export_bundle apart from net and folder."""
    return {
        "samples": samples,
        "channels": (Channel(name="calcein", role="live"), Channel(name="PI", role="dead")),
        "image_dtypes": ("uint16", "float32"),
        "pixel_size_um": 0.65,
        "splitting": Splitting(min_area_px=5),
        "accuracy": {"val/pixel/miou": 0.5},
        "provenance": {"data_fingerprint": "00"},
        "live_threshold": 0.4,
    }


@pytest.fixture(scope="session")
def tiny():
    """The class and the sample builder, for tests that need another one."""
    return TinyNet, build_sample
