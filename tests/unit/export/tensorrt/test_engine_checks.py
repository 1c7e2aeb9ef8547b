"""What keeps a net from becoming engines, said before anything is made."""

import pytest

from cellvision.bundle import load_manifest
from cellvision.errors import ConfigError, ExportError, MissingExtraError
from cellvision.export.graph_options import GraphOptions
from cellvision.export.tensorrt import engines
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.models.build import build_model
from stain_net import write_bundle

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


def test_engines_take_single_images():
    unet = build_model(name="unet", kind="semantic", in_channels=1, classes=CLASSES, widths=(4, 8))
    with pytest.raises(ConfigError, match=r"trt\.batch=\[4, 4, 8\]; need 1 as the smallest: images come alone too"):
        engines.check_engines(unet, GraphOptions(), TensorrtOptions(backend="tensorrt_rtx", batch=(4, 4, 8)))


@pytest.mark.parametrize(
    ("largest", "tile_px"), [((1024, 1024), 512), ((1024, 700), 496), ((215, 300), 16), ((200, 200), 512)]
)
def test_tiles_fit_the_largest_window_of_an_engine(tmp_path, largest, tile_px):
    """Margins of 96 px on both sides, and a stride of 16 px; without room for them it takes whole images only."""
    given = {name: (32, 64, edge) for name, edge in zip(("height", "width"), largest, strict=True)}
    manifest = load_manifest(write_bundle(tmp_path, stride=16, tile_px=512, overlap_px=96))
    assert engines._fit_tile(manifest, TensorrtOptions(backend="tensorrt_rtx", **given)) == tile_px


def test_the_library_and_its_gpu_are_there(monkeypatch):
    unet = build_model(name="unet", kind="semantic", in_channels=1, classes=CLASSES, widths=(4, 8))
    with pytest.raises(ConfigError, match="no GPU of device=0; there are: none; need an NVIDIA GPU"):
        engines.check_engines(unet, GraphOptions(), TensorrtOptions())

    def miss(backend):
        raise MissingExtraError(backend, extra="trt")

    monkeypatch.setattr(engines, "import_backend", miss)
    with pytest.raises(MissingExtraError, match="tensorrt_rtx"):
        engines.check_engines(unet, GraphOptions(), WITHOUT_GPU)
