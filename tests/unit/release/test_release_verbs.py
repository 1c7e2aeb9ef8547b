"""The verbs of a registry: what is refused before anything is registered, and what one damaged file does not block."""

import json

import pytest

from cellvision.bundle import load_manifest
from cellvision.cli import main
from cellvision.release.deploy import deploy
from cellvision.release.process import DeployError
from cellvision.release.registry import ModelRegistry
from stain_net import build_graph, write_bundle


class Shop:
    """A registry of model "cells" and two bundles with scores, all in one folder."""

    def __init__(self, folder):
        self.folder, self.models = folder, folder / "models"
        self.registry = ModelRegistry(self.models)
        for name, scale in {"one": 1.0, "two": 1.1}.items():
            write_bundle(folder / name, build_graph(scale=scale))
            self.write_scores(name, 0.8)

    def write_scores(self, name, f1):
        graph = load_manifest(self.folder / name).graphs[0].sha256
        plain = {"graph_sha256": graph, "data": {"fingerprint": "f", "images": 3}, "scores": {"cell/f1": f1}}
        (self.folder / f"{name}.json").write_text(json.dumps(plain))

    def register(self, name, *words):
        return self.run("register", self.folder / name, "--name", "cells", *words)

    def gate(self, name, *words):
        return self.register(name, "--scores", self.folder / f"{name}.json", "--metric", "cell/f1", *words)

    def run(self, *words):
        return main([*map(str, words), "--models", str(self.models)])

    def take_into_production(self, name):
        assert self.gate(name) == 0
        self.registry.set_production("cells", self.registry.get("cells").version)

    @property
    def numbers(self):
        return [version.version for version in self.registry.list_versions("cells")]


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.mark.parametrize("bound", ["nan", "inf", "-inf"])
def test_a_bound_that_is_no_number_registers_nothing(shop, capsys, bound):
    assert shop.gate("one", f"--at-least={bound}") == 2
    assert capsys.readouterr().err == f"cellvision: at_least={bound}; need a finite number; try: at_least=0.7\n"
    assert not shop.models.exists()
    assert shop.gate("one", "--at-least", "0.7") == 0
    assert shop.run("models") == 0


@pytest.mark.parametrize("option", [("--at-least", "0.99"), ("--production-scores", "SCORES")])
def test_what_only_a_gate_reads_needs_one(shop, capsys, option):
    option = [str(shop.folder / "two.json") if word == "SCORES" else word for word in option]
    for more in ([], ["--scores", shop.folder / "one.json"]):
        assert shop.register("one", *more, *option) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"cellvision: {option[0]} {option[1]} without --metric; need the score that is to decide"
        )
    assert shop.register("one", "--metric", "cell/f1") == 2
    assert "a metric without scores; need both" in capsys.readouterr().err
    assert shop.register("one", "--metric", "", "--scores", shop.folder / "one.json") == 2
    assert "unknown metric ''; need one of: cell/f1" in capsys.readouterr().err
    assert not shop.models.exists()


OWN = ["graphs", "recipe", "model", "kind", "precision", "training_data", "checkpoint", "git", "cellvision", "created"]
OWN += ["files", "fields", "images", "scored", "score.cell.f2", "gate.metric"]


@pytest.mark.parametrize("name", OWN)
def test_tags_of_the_registry_are_its_own(shop, capsys, name):
    assert shop.register("one", "--tag", "plate=A1", "--tag", f"{name}=zzz") == 2
    said = f"cellvision: tag {name}, which the registry sets itself; need a name of your own; try: my_"
    assert capsys.readouterr().err.startswith(said)
    assert not shop.models.exists()


def test_a_tag_that_no_file_can_hold(shop, capsys):
    assert shop.register("one", "--tag", "plate=\udcff") == 2
    assert "a record of cells that could not be read again (" in capsys.readouterr().err
    assert not shop.models.exists()


def test_an_altered_version_in_production_blocks_nothing_else(shop, capsys):
    shop.take_into_production("one")
    with (shop.models / "cells" / "1" / "bundle" / "manifest.json").open("a") as stream:
        stream.write(" ")
    assert shop.run("models") == 0
    assert "production" in capsys.readouterr().out
    assert shop.run("models", "cells") == 0
    shop.write_scores("two", 0.7)
    assert shop.gate("two") == 2
    assert "cell/f1 0.7, and cells version 1, which is in production, has 0.8" in capsys.readouterr().err
    shop.write_scores("two", 0.9)
    assert shop.gate("two") == 0
    assert shop.registry.get("cells", 2).gate.production == 1
    assert shop.run("deploy", "cells", "--version", "1") == 2
    said = (
        "cells version 1: manifest.json changed since it was registered; need an unaltered bundle; "
        "try: cellvision deploy cells --version N, another one, or register the bundle again as a new version"
    )
    assert said in capsys.readouterr().err


def test_another_version_than_the_altered_one_is_deployed(shop, monkeypatch):
    shop.take_into_production("one")
    assert shop.gate("two") == 0
    (shop.models / "cells" / "1" / "bundle" / "model.onnx").write_bytes(b"x")
    started = []

    def start(bundle, **_):
        started.append(bundle)
        raise DeployError("enough")

    monkeypatch.setattr("cellvision.release.deploy.start_server", start)
    for version in (None, 2):
        with pytest.raises(DeployError, match="enough"):
            deploy(shop.registry, "cells", version=version)
    assert started == [shop.models / "cells" / "2" / "bundle"] * 2


def test_what_was_registered_is_deployed_and_not_the_newest(shop, monkeypatch, capsys):
    pytest.importorskip("uvicorn", reason='needs pip install "cellvision[serve]"')
    record = shop.folder / "registered.json"
    assert shop.gate("one", "--json", record) == 0
    assert shop.gate("two") == 0
    started = []

    def start(bundle, **_):
        started.append(bundle)
        raise DeployError("enough")

    monkeypatch.setattr("cellvision.release.deploy.start_server", start)
    assert shop.run("deploy", "cells", "--registered", record) == 2
    assert started == [shop.models / "cells" / "1" / "bundle"]
    shop.write_scores("two", 0.9)
    shop.take_into_production("two")
    capsys.readouterr()
    assert shop.run("deploy", "cells", "--registered", record) == 2
    assert "cell/f1 0.8, and cells version 3, which is in production, has 0.9" in capsys.readouterr().err
    assert len(started) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ('{"version": 1}', "does not say what was registered; need a file written by cellvision; try: cellvision reg"),
        ('{"name": "cells", "version": true}', "does not say what was registered"),
        (
            '{"name": "dots", "version": 1}',
            "which names a version of dots; need one of cells; try: cellvision deploy",
        ),
        ('{"name": "cells", "version": 7}', "cells version 7; need one of 1"),
    ],
)
def test_a_file_that_names_no_version_deploys_none(shop, capsys, content, said):
    pytest.importorskip("uvicorn", reason='needs pip install "cellvision[serve]"')
    assert shop.gate("one") == 0
    if content is not None:
        (shop.folder / "a.json").write_text(content)
    assert shop.run("deploy", "cells", "--registered", shop.folder / "a.json") == 2
    assert said in capsys.readouterr().err


def test_the_bundle_of_an_altered_version_is_registered_again_as_a_new_one(shop):
    shop.take_into_production("one")
    (shop.models / "cells" / "1" / "bundle" / "model.onnx").write_bytes(b"x")
    assert shop.gate("one") == 0
    assert shop.numbers == [1, 2]
    assert shop.registry.get("cells").version == 2


def test_a_damaged_record_blocks_no_other_version(shop, capsys):
    shop.take_into_production("one")
    record = shop.models / "cells" / "1" / "version.json"
    record.write_text("{")
    capsys.readouterr()
    assert shop.run("models") == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"cellvision: {record} cannot be read (it is no JSON)")
    assert shop.gate("two") == 2  # nobody knows what it has to be compared with
    said = "cells version 1, which is in production, and whose version.json cannot be read; need its scores, to compare"
    assert said in capsys.readouterr().err
    assert shop.register("two") == 0
    assert shop.numbers == [2]
    (shop.models / "cells" / "production.json").unlink()
    assert shop.gate("two") == 0
    record.with_name("version.json").write_text('{"scores": "", "gate": null}')
    assert shop.run("models") == 1
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  cells")] == [
        "2",
        "3",
    ]


def test_a_damaged_note_of_one_model_hides_no_other(shop, capsys):
    shop.take_into_production("one")
    assert shop.run("register", shop.folder / "two", "--name", "others") == 0
    (shop.models / "cells" / "production.json").write_text("[]")
    capsys.readouterr()
    assert shop.run("models") == 1
    said = capsys.readouterr()
    assert said.err.count("production.json is no JSON object") == 1
    listed = [line.split()[:2] for line in said.out.splitlines() if line.startswith(("  cells", "  others"))]
    assert listed == [["cells", "1"], ["others", "1"]]


def test_where_the_number_cannot_be_written_nothing_is_registered(shop, capsys):
    (shop.folder / "file").touch()
    for place, said in (("file/a.json", "is a file; need a folder"), ("one", "is a folder; need the name of a file")):
        assert shop.register("one", "--json", shop.folder / place) == 2
        assert said in capsys.readouterr().err
    assert not shop.models.exists()
    assert shop.register("one", "--json", shop.folder / "new" / "a.json") == 0
    assert json.loads((shop.folder / "new" / "a.json").read_text())["version"] == 1
    assert [path.name for path in (shop.folder / "new").iterdir()] == ["a.json"]


@pytest.mark.parametrize("place", ["file", "file/models"])
@pytest.mark.parametrize("verb", [("register", "BUNDLE", "--name", "a"), ("models",), ("deploy", "a")])
def test_a_registry_in_a_file(shop, capsys, place, verb):
    (shop.folder / "file").touch()
    shop.models = shop.folder / place
    assert shop.run(*[str(shop.folder / "one") if word == "BUNDLE" else word for word in verb]) == 2
    said = f"cellvision: {shop.folder / 'file'}, which is a file, for a registry; need a folder; try: models\n"
    assert capsys.readouterr().err == said


def test_a_name_that_a_file_has(shop, capsys):
    shop.models.mkdir()
    (shop.models / "cells").touch()
    assert shop.register("one") == 2
    said = f"{shop.models / 'cells'}, which cannot be written (File exists); need a folder for versions; try: another"
    assert said in capsys.readouterr().err


def test_a_registry_that_is_not_there_is_no_empty_one(shop, capsys):
    for words in (["models"], ["models", "cells"], ["deploy", "cells"]):
        assert shop.run(*words) == 2
        said = f"cellvision: no folder {shop.models}; need that of a registry; try: cellvision register BUNDLE --name"
        assert capsys.readouterr().err.startswith(said)
    shop.models.mkdir()
    assert shop.run("models") == 0
    assert capsys.readouterr().out == f"nothing is registered in {shop.models}\n"
    assert shop.run("models", "cells") == 2
    said = (
        "cellvision: model 'cells' of a registry that has none; need one that is registered; try: cellvision register"
    )
    assert capsys.readouterr().err.startswith(said)


def test_another_request_is_another_version(shop):
    assert shop.gate("one", "--tag", "plate=A1", "--at-least", "0.5") == 0
    assert shop.gate("one", "--at-least", "0.5") == 0  # it has no tag that would be lost
    assert shop.gate("one", "--tag", "plate=A1", "--at-least", "0.5") == 0
    assert shop.numbers == [1]
    assert shop.gate("one", "--tag", "plate=B2", "--at-least", "0.5") == 0
    assert shop.numbers == [1, 2]
    assert shop.gate("one", "--tag", "plate=B2", "--at-least", "0.6") == 0
    assert shop.registry.get("cells").gate.at_least == 0.6
    assert shop.numbers == [1, 2, 3]
    shop.registry.set_production("cells", 3)  # then it is compared with itself, and is the same still
    assert shop.gate("one", "--tag", "plate=B2", "--at-least", "0.6") == 0
    assert shop.numbers == [1, 2, 3]
