"""What keeps a net from becoming engines, said before anything is made."""

import pytest

from cellvision.errors import ConfigError, ExportError, MissingExtraError
from cellvision.export.graph_options import GraphOptions
from cellvision.export.tensorrt import engines
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.models.build import build_model

CLASSES = ("background", "cell")
WITHOUT_GPU = TensorrtOptions(backend="tensorrt_rtx")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """A machine that has every library, and no GPU."""
    monkeypatch.setattr(engines, "import_backend", lambda backend: None)
    monkeypatch.setattr("cellvision.export.tensorrt.builder.list_gpus", list)
    monkeypatch.setattr("cellvision.runtime.engines.library.list_gpus", list)


@pytest.fixture(scope="module")
def instance_net():
    settings = {"backbone": "vovnet19_slim_dw", "levels": [3, 4], "top_levels": 0, "roi_levels": [3, 4]}
    settings |= {"fpn_channels": 16, "assigning": {"sizes_of_interest": [32]}}
    return build_model(name="centermask2", in_channels=1, classes=CLASSES, **settings)


def test_an_instance_net_comes_in_two_graphs(instance_net):
    with pytest.raises(ExportError, match=r"an instance net in one graph; need two, as engines .*; try: form=parted"):
        engines.check_engines(instance_net, GraphOptions(), WITHOUT_GPU)
    engines.check_engines(instance_net, GraphOptions(form="parted", max_cells=3000), WITHOUT_GPU)


def test_the_library_and_its_gpu_are_there(monkeypatch):
    unet = build_model(name="unet", kind="semantic", in_channels=1, classes=CLASSES, widths=(4, 8))
    with pytest.raises(ConfigError, match="no GPU of device=0; there are: none; need an NVIDIA GPU"):
        engines.check_engines(unet, GraphOptions(), TensorrtOptions())

    def miss(backend):
        raise MissingExtraError(backend, extra="trt")

    monkeypatch.setattr(engines, "import_backend", miss)
    with pytest.raises(MissingExtraError, match="tensorrt_rtx"):
        engines.check_engines(unet, GraphOptions(), WITHOUT_GPU)
