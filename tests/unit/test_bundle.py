"""The manifest: what was written comes back, and anything else is one sentence that names the key."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cellvision.bundle import (
    FIELD_COLUMNS,
    Channel,
    Detecting,
    Graph,
    Manifest,
    Splitting,
    compute_sha256,
    load_manifest,
    write_manifest,
)
from cellvision.data.dataset import to_classes
from cellvision.errors import BundleError, ConfigError

HEX = "0123456789abcdef" * 4
GRAPH = {"role": "whole", "file": "graph.onnx", "sha256": HEX}
FACTS = {
    "model": "unet", "kind": "viability", "input_dtype": "uint16",
    "graphs": (Graph(role="whole", file="graph.onnx", sha256=HEX),),
    "image_dtypes": ("uint8", "uint16"), "channels": (Channel(name="Hoechst", role="nuclear"), Channel(name="PI")),
    "pixel_size_um": 0.5, "classes": ("background", "live", "dead"), "outputs": ("probabilities", "distance"),
    "stride": 16, "splitting": Splitting(),
}  # fmt: skip


def describe(folder):
    return (Graph(role="whole", file="graph.onnx", sha256=compute_sha256(folder / "graph.onnx")),)


@pytest.fixture
def bundle(tmp_path):
    """A folder with a manifest that suits its graph."""
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    write_manifest(Manifest(**(FACTS | {"graphs": describe(tmp_path)})), tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_comes_back(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    facts = FACTS | {
        "graphs": describe(tmp_path), "pixel_size_um": None, "tile_px": 64, "overlap_px": 0,
        "nucleus_margin_px": 6, "live_threshold": 0.4, "recipe": ({"step": "prune"},), "versions": {"numpy": "2"},
    }  # fmt: skip
    write_manifest(Manifest(**facts), tmp_path)
    assert load_manifest(tmp_path) == Manifest(**facts)


def test_what_has_a_default_may_be_absent(bundle):
    record = json.loads((bundle / "manifest.json").read_text())
    for key in ("nucleus_margin_px", "live_threshold", "tile_px", "recipe", "provenance"):
        del record[key]
    (bundle / "manifest.json").write_text(json.dumps(record))
    assert load_manifest(bundle).nucleus_margin_px == 0


WRONG = [
    ("model", 3, "a name"),
    ("kind", "panoptic", "one of semantic, viability, instance"),
    ("kind", ["semantic"], "one of semantic, viability, instance"),
    ("graphs", [], "roles whole"),
    ("graphs", 3, "a list"),
    ("detecting", {"nms_iou": 0.5}, "null for a net without detections"),
    ("gate", [], "names with values"),
    ("input_dtype", "float16", "one of uint8, uint16, float32"),
    ("image_dtypes", [], "different ones of uint8, uint16, float32"),
    ("image_dtypes", "uint8", "a list"),
    ("image_dtypes", ["uint8", "int8"], "different ones of"),
    ("image_dtypes", ["uint8", ["uint8"]], "different ones of"),
    ("pixel_size_um", "x", "a number of micrometres from 0.0001 to 1000000, or null"),
    ("classes", ["background", "live", "dead", "low_percent"], "other names than the columns image, cells, viab"),
    ("pixel_size_um", 9e-5, "a number of micrometres from"),
    ("pixel_size_um", 1.1e6, "a number of micrometres from"),
    ("pixel_size_um", 0, "a number of micrometres from"),
    ("pixel_size_um", float("nan"), "a number of micrometres from"),
    ("pixel_size_um", float("inf"), "a number of micrometres from"),
    ("pixel_size_um", True, "a number of micrometres from"),
    ("classes", ["background"], "at least two different names"),
    ("classes", ["background", "live", "live"], "at least two different names"),
    ("classes", "live", "a list"),
    ("classes", None, "a list"),
    ("classes", ["background", "Live", "dead"], "live and dead after the background, for viability"),
    ("classes", ["live", "dead"], "live and dead after the background, for viability"),
    ("outputs", ["distance", "probabilities"], "different names, probabilities first"),
    ("outputs", ["probabilities"], "distance too for splitting.method=distance"),
    ("outputs", [], "different names, probabilities first"),
    ("outputs", ["probabilities", "distance", "distance"], "different names, probabilities first"),
    ("stride", "4", "a whole number from 1 to 500000000"),
    ("stride", 0, "a whole number from 1 to 500000000"),
    ("stride", True, "a whole number from 1 to 500000000"),
    ("live_threshold", 2, "a number between 0 and 1"),
    ("live_threshold", 1.0, "a number between 0 and 1"),
    ("live_threshold", "x", "a number between 0 and 1"),
    ("tile_px", -8, "a whole number from 1 to 500000000"),
    ("tile_px", 500_000_016, "a whole number from 1 to 500000000"),
    ("tile_px", "big", "a whole number from 1 to 500000000"),
    ("tile_px", 512.0, "a whole number from 1 to 500000000"),
    ("tile_px", 100, "a multiple of stride=16; try: tile_px=112"),
    ("overlap_px", -100, "a whole number from 0 to 500000000"),
    ("overlap_px", 1.5, "a whole number from 0 to 500000000"),
    ("overlap_px", 97, "a multiple of stride=16; try: overlap_px=112"),
    ("nucleus_margin_px", -1, "a whole number from 0 to 500000000"),
    ("recipe", ["prune"], "a list of records"),
    ("recipe", {}, "a list"),
    ("parity", None, "names with values"),
    ("versions", [], "names with values"),
]


@pytest.mark.parametrize(("key", "value", "need"), WRONG, ids=lambda entry: str(entry)[:20])
def test_a_value_that_cannot_be_is_named_on_load(bundle, key, value, need):
    edit(bundle, **{key: value})
    with pytest.raises(BundleError) as caught:
        load_manifest(bundle)
    message = str(caught.value)
    assert message.startswith(f"{bundle / 'manifest.json'}: {key}=")
    assert f"; need {need}" in message
    assert f"; try: {key}=" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("channels", [], r"channels.name=\(\); need at least one name, all different"),
        ("channels", [{"name": "PI"}, {"name": "PI"}], r"channels.name=\('PI', 'PI'\); need .* all different"),
        ("channels", [{"name": 3}], r"channels.name=\(3,\); need"),
        ("channels", [{"name": "PI", "role": 3}], r"channels.role=\(3,\); need nuclear, live, dead"),
        ("channels", [{"role": "dead"}], "channels: lacks name; need the keys name, role"),
        ("channels", [{"name": "PI", "colour": "red"}], "channels: unknown colour; need the keys name, role"),
        ("channels", ["PI"], "channels='PI'; need the keys name, role"),
        ("channels", 3, "channels=3; need a list"),
        ("splitting", None, "splitting=None; need the keys foreground_threshold, method"),
        ("splitting", {"speed": 1}, "splitting: unknown speed; need the keys foreground_threshold, method"),
        ("splitting", {"method": "flood"}, "splitting.method='flood'; need one of distance, components"),
        ("splitting", {"method": ["distance"]}, "splitting.method=.*; need one of distance, components"),
        ("splitting", {"seed_threshold": "0.5"}, "splitting.seed_threshold='0.5'; need a number between 0 and 1"),
        ("splitting", {"foreground_threshold": 1}, "splitting.foreground_threshold=1; need a number between"),
        ("splitting", {"min_area_px": 0}, "splitting.min_area_px=0; need a whole number from 1 to 500000000"),
        (
            "splitting",
            {"min_area_px": 10**18},
            "splitting.min_area_px=1000000000000000000; need a whole number from 1 to 500000000",
        ),
        ("splitting", {"min_seed_px": 2.5}, "splitting.min_seed_px=2.5; need a whole number from 1 to 500000000"),
        ("splitting", {"min_seed_px": True}, "splitting.min_seed_px=True; need a whole number from 1 to 500000000"),
        (
            "splitting",
            {"method": "instances"},
            "splitting.method='instances'; need instances for kind=instance, and only",
        ),
        (
            "graphs",
            [{"role": "tail", "file": "a", "sha256": HEX}],
            "graphs.role='tail'; need one of whole, trunk, masks",
        ),
        ("graphs", [{"role": "whole", "file": 3, "sha256": HEX}], "graphs.file=3; need a name"),
        ("graphs", [{"role": "whole", "file": "a", "sha256": ""}], "graphs.sha256=''; need 64 lowercase hex digits"),
        ("graphs", [GRAPH | {"sha256": HEX.upper()}], "graphs.sha256=.*; need 64 lowercase hex digits"),
        ("graphs", [GRAPH | {"engine": "tvm"}], "graphs.engine='tvm'; need one of onnx, tensorrt, tensorrt_rtx"),
        ("graphs", [GRAPH | {"precision": "fp8"}], "graphs.precision='fp8'; need one of fp32, fp16, int8"),
        (
            "graphs",
            [GRAPH | {"role": "trunk"}, GRAPH | {"role": "masks"}],
            r"graphs=\('trunk', 'masks'\); need roles whole",
        ),
        ("detecting", {"nms_iou": 2}, "detecting.nms_iou=2; need a number between 0 and 1"),
        ("detecting", {"min_score": 1.5}, "detecting.min_score=1.5; need a number from 0 up and below 1"),
        ("detecting", {"max_cells": 0}, "detecting.max_cells=0; need a whole number from 1 to 500000000"),
        ("detecting", {"speed": 0}, "detecting: unknown speed; need the keys mask_side, max_cells, min_score"),
        ("provenance", {"tiling": 3}, "provenance.tiling=3; need names with values"),
        ("stride", 3, "tile_px=512; need a multiple of stride=3; try: tile_px=513"),
        ("colour", "red", "unknown colour; need the keys of this release"),
    ],
)
def test_a_fault_inside_an_entry_is_named_on_load(bundle, key, value, message):
    edit(bundle, **{key: value})
    with pytest.raises(BundleError, match=rf"manifest\.json: {message}"):
        load_manifest(bundle)


def test_a_missing_key_is_named(bundle):
    record = json.loads((bundle / "manifest.json").read_text())
    del record["stride"], record["model"]
    (bundle / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match=r"manifest\.json: lacks model, stride; need the keys of this release"):
        load_manifest(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "is not of format"),
        ('{"format": "cellvision-bundle", "format_version": 1}', "has format version 1, this release reads 2"),
        ('{"format": "cellvision-bundle", "format_version": true}', "has format version True"),
    ],
    ids=range(6),
)
def test_a_file_that_is_no_manifest(bundle, text, message):
    (bundle / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=rf"manifest\.json {message}.*; need an unaltered bundle; try: "):
        load_manifest(bundle)


@pytest.mark.parametrize("name", ["../graph.onnx", "missing.onnx", ".."])
def test_a_graph_elsewhere_is_refused(bundle, name):
    edit(bundle, graphs=[{"role": "whole", "file": name, "sha256": HEX}])
    with pytest.raises(BundleError, match="names the graph"):
        load_manifest(bundle)


def test_a_long_value_is_cut(bundle):
    edit(bundle, tile_px="9" * 10_000)
    with pytest.raises(BundleError) as caught:
        load_manifest(bundle)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "change", [{"channels": ["PI"]}, {"classes": ["background", "live"]}, {"splitting": {}}, {"recipe": [1]}]
)
def test_a_manifest_made_in_python_is_checked_too(change):
    with pytest.raises(BundleError, match=f"^{next(iter(change))}="):
        Manifest(**(FACTS | change))


@pytest.mark.parametrize("name", FIELD_COLUMNS)
def test_no_class_has_the_name_of_a_column(name):
    """Of ``fields.csv``, in which each class has one: neither in a bundle nor in the data that it is trained on."""
    with pytest.raises(BundleError, match=f"'{name}'.*; need other names than the columns image, cells,"):
        Manifest(**FACTS | {"kind": "semantic", "classes": ("background", name)})
    with pytest.raises(ConfigError, match=f"classes cell, {name}; need other names: fields.csv has columns {name} "):
        to_classes(["cell", name])


@pytest.mark.parametrize("pixel_size_um", [1e-4, 1, 1e6])
def test_pixels_of_any_microscope_are_accepted(pixel_size_um):
    assert Manifest(**FACTS | {"pixel_size_um": pixel_size_um}).pixel_size_um == pixel_size_um


def test_semantic_bundles_name_their_classes_freely():
    facts = FACTS | {"kind": "semantic", "classes": ("ground", "round"), "outputs": ("probabilities",)}
    assert Manifest(**(facts | {"splitting": Splitting(method="components")})).classes == ("ground", "round")


BOXES = ("boxes", "scores", "classes", "valid", "class_scores", "masks")
INSTANCES = {
    "kind": "instance", "classes": ("background", "cell"), "outputs": BOXES, "detecting": Detecting(max_cells=300),
    "splitting": Splitting(method="instances"),
}  # fmt: skip
PARTED = (Graph(role="trunk", file="a", sha256=HEX), Graph(role="masks", file="b", sha256=HEX))


@pytest.mark.parametrize("more", [{}, {"outputs": (*BOXES, "mask_scores")}, {"graphs": PARTED}])
def test_an_instance_bundle_comes_back(tmp_path, more):
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    (tmp_path / "a").write_bytes(b"graph")
    (tmp_path / "b").write_bytes(b"graph")
    facts = FACTS | INSTANCES | more
    graphs = tuple(replace(graph, sha256=compute_sha256(tmp_path / graph.file)) for graph in facts["graphs"])
    write_manifest(Manifest(**(facts | {"graphs": graphs})), tmp_path)
    found = load_manifest(tmp_path)
    assert found == Manifest(**(facts | {"graphs": graphs}))
    assert found.is_parted == ("graphs" in more)
    assert found.find_graph(graphs[-1].role) is found.graphs[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": ("probabilities",)}, "^outputs=.*; need boxes, scores"),
        ({"detecting": None}, "^detecting=None; need nms_iou, max_cells and mask_side"),
        ({"splitting": Splitting(method="components")}, "^splitting.method='components'; need instances"),
        ({"graphs": PARTED[:1]}, r"^graphs=\('trunk',\); need roles whole or trunk and masks"),
        ({"graphs": (PARTED[0], replace(PARTED[1], file="a"))}, "^graphs.file=.*; need different names"),
    ],
)
def test_an_instance_manifest_that_cannot_be(change, message):
    with pytest.raises(BundleError, match=message):
        Manifest(**(FACTS | INSTANCES | change))


@pytest.mark.parametrize("kind", [Manifest, Graph, Detecting, Splitting])
def test_every_key_is_documented(kind):
    assert not [f.name for f in fields(kind) if f.name not in kind.__doc__]


def test_scores_that_are_no_number_are_written_as_null(bundle):
    manifest = replace(load_manifest(bundle), accuracy={"val/a": float("nan"), "b": [1.0, float("inf")]})
    written = json.loads(write_manifest(manifest, bundle).read_text(), parse_constant=pytest.fail)
    assert written["accuracy"] == {"val/a": None, "b": [1.0, None]}


def test_a_manifest_that_cannot_be_written_to_its_end_leaves_the_old_one(bundle, monkeypatch):
    manifest, before = load_manifest(bundle), (bundle / "manifest.json").read_bytes()
    write = Path.write_text

    def stop_half_way(path, text, **options):
        write(path, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", stop_half_way)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(replace(manifest, tile_px=1024), bundle)
    assert sorted(path.name for path in bundle.iterdir()) == ["graph.onnx", "manifest.json"]
    assert (bundle / "manifest.json").read_bytes() == before
