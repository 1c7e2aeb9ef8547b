"""Imports point one way along the data flow, and heavy packages stay where they are wanted."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "cellvision"

BASE = {"checks", "errors", "git_state", "registry", "types", "bundle"}
TO_TRAINING = BASE | {"images", "ops", "data", "models", "metrics", "runtime"}
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "settings": {"errors"},
    "launch": {"errors"},
    "composition": {"checks", "errors", "settings", "data"},
    "images": {"errors"},
    "runtime": {"errors", "bundle", "images"},
    "ops": BASE,
    "data": BASE | {"images", "ops"},
    "models": BASE | {"ops"},
    "metrics": BASE | {"images", "ops", "runtime"},
    "training": TO_TRAINING,
    "compression": TO_TRAINING | {"training"},
    "report": {"errors", "metrics"},
    "export": TO_TRAINING | {"training", "compression", "report"},
    "serve": {"errors", "bundle", "images", "data", "runtime"},
    "release": {"errors", "git_state", "bundle", "serve"},
    "cloud": {"checks", "errors", "git_state", "bundle", "release"},
    "commands": BASE | {"images", "data", "metrics", "runtime", "report", "serve", "release", "cloud"},
    "cli": BASE | {"images", "data", "metrics", "runtime", "commands"},
    "building": TO_TRAINING | {"settings", "composition", "training", "compression", "export"},
    "small_net": TO_TRAINING | {"composition", "building", "training", "compression", "export"},
    "delivery": TO_TRAINING | {"composition", "building", "small_net", "training", "compression", "export", "commands"},
    "app": TO_TRAINING
    | {"settings", "composition", "building", "delivery", "training", "compression", "export", "commands", "launch"},
}
"""From each layer, the layers it may see besides itself. A new layer needs a row here."""

LIGHT = {"runtime", "report", "serve", "release", "cloud", "commands", "cli"}
"""Layers that load where torch is not installed, with all they bring in."""

LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
TRAINING_PACKAGES = {"torch", "torchvision", "torchmetrics", "timm", "onnx", "onnxscript", "tensorboard"} | LIGHTNING
SETTINGS_PACKAGES = {"hydra", "omegaconf"}
TORCH_IN_DATA = {"data.augment", "data.batching", "data.datamodule", "data.sampler"}
"""What makes batches out of samples. Reading files needs no torch: the ``cellvision`` command does it too."""

TORCH_IN_METRICS = {"metrics.state", "metrics.instance_state"}
"""The stateful shells; what they compute is numpy, for the ``cellvision`` command too."""

WITHOUT_TORCH = {"data.images", "data.coco", "data.folder", "data.livedead", "data.synthetic", "ops.targets", "types"}
"""Modules that must load where torch is not installed, with all they bring in; as must runtime, commands and cli."""


@dataclass(frozen=True)
class Import:
    line: int
    target: str
    for_types: bool
    at_load: bool


def read_imports(path, module, modules):
    """Every import of a file: by statement, or by a constant name given to ``import_module``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_walk(tree, package, modules, for_types=False, at_load=True))


def _walk(node, package, modules, *, for_types, at_load):
    for child in ast.iter_child_nodes(node):
        inside_types = for_types or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        inside_load = at_load and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for target in _find_targets(child, package, modules):
            yield Import(child.lineno, target, inside_types, inside_load)
        yield from _walk(child, package, modules, for_types=inside_types, at_load=inside_load)


def _find_targets(node, package, modules):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        base = ".".join(parents[: len(parents) - node.level + 1] if node.level else [])
        base = ".".join(filter(None, [base, node.module]))
        inside = [f"{base}.{alias.name}" for alias in node.names]
        return list(dict.fromkeys(name if name in modules else base for name in inside))
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def read_graph(root):
    """From each module of ``root/src`` and each script of ``root`` to its imports."""
    paths = {}
    for path in sorted((root / "src").rglob("*.py")):
        parts = path.relative_to(root / "src").with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {module: read_imports(path, module, paths) for module, path in paths.items()}


def find_layer(module):
    """The layer of a module of the package, or None for the package itself, which only names its parts."""
    inner = module.removeprefix(PACKAGE).lstrip(".")
    if is_part(inner, {"data.images"}):
        return "images"
    return {"": None, "__main__": "cli"}.get(inner, inner.split(".")[0])


def is_part(inner, names):
    """Whether a module is one of these modules and packages, or lies in one."""
    return any(inner == name or inner.startswith(f"{name}.") for name in names)


def find_backward_arrows(graph):
    faults = []
    for module, imports in graph.items():
        layer = find_layer(module) if module.split(".")[0] == PACKAGE else None
        if layer is None:
            continue
        if layer not in ALLOWED:
            faults.append(f"{module}: layer {layer!r} has no row in ALLOWED")
            continue
        for found in imports:
            seen = find_layer(found.target) if found.target.split(".")[0] == PACKAGE else layer
            if seen not in ALLOWED[layer] | {layer, None}:
                faults.append(f"{module}:{found.line} ({layer}) imports {found.target} ({seen})")
    return faults


def find_misplaced_packages(graph):
    """Imports of heavy packages where they are not wanted, be it inside a function."""
    faults = []
    for module, imports in graph.items():
        inner = module.removeprefix(f"{PACKAGE}.")
        layer = find_layer(module) if module.startswith(PACKAGE) else "plugin"
        forbidden = set()
        if layer not in ("app", "building", "small_net", "delivery", "composition", "launch", "plugin"):
            forbidden |= SETTINGS_PACKAGES
        if (
            layer not in ("training", "compression", "building", "small_net", "delivery", "app")
            and inner != "data.datamodule"
        ):
            forbidden |= LIGHTNING
        free_of_torch = layer in LIGHT | BASE | {"images", None} or inner in WITHOUT_TORCH
        in_numpy = layer in ("data", "metrics") and not is_part(inner, TORCH_IN_DATA | TORCH_IN_METRICS)
        if free_of_torch or in_numpy:
            forbidden |= TRAINING_PACKAGES
        faults += [
            f"{module}:{found.line} imports {found.target}"
            for found in imports
            if found.target.split(".")[0] in forbidden and not found.for_types
        ]
    return faults


def find_heavy_loads(graph):
    """Modules that must load without torch, and do not because of something they bring in."""
    faults = []
    for module in graph:
        inner = module.removeprefix(f"{PACKAGE}.")
        if find_layer(module) in LIGHT or inner in WITHOUT_TORCH:
            for reached, way in _load(graph, module).items():
                loaded = {i.target.split(".")[0] for i in graph[reached] if i.at_load and not i.for_types}
                if heavy := loaded & (TRAINING_PACKAGES | SETTINGS_PACKAGES):
                    faults.append(f"{' -> '.join(way)} loads {', '.join(sorted(heavy))}")
    return faults


def _load(graph, start):
    """Every module that loading ``start`` loads, packages on the way included, with one way to it."""
    ways, waiting = {}, [(start, ())]
    while waiting:
        module, way = waiting.pop()
        for name in _with_parents(module):
            if name in graph and name not in ways:
                ways[name] = (*way, name)
                waiting += [(i.target, ways[name]) for i in graph[name] if i.at_load and not i.for_types]
    return ways


def _with_parents(module):
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def find_app_users(graph):
    return [f"{m}:{i.line}" for m, imports in graph.items() for i in imports if i.target == f"{PACKAGE}.app"]


CHECKS = [find_backward_arrows, find_misplaced_packages, find_heavy_loads, find_app_users]


@pytest.fixture(scope="module")
def graph():
    return read_graph(ROOT)


@pytest.mark.parametrize("check", CHECKS)
def test_imports_of_the_library(graph, check):
    assert len(graph) > 20
    assert check(graph) == []


def test_manifest_needs_nothing_but_the_standard_library(graph):
    """The bundle is read by every runtime there will be: standard library and errors only."""
    parts = [name for name in graph if name.startswith(f"{PACKAGE}.bundle")]
    assert len(parts) > 3
    assert {i.target.split(".")[0] for part in parts for i in graph[part]} <= {
        "__future__", "cellvision", "dataclasses", "hashlib", "json", "math", "pathlib", "typing",
    }  # fmt: skip


PLANTED = [
    (find_backward_arrows, "ops/losses.py", "from cellvision.models import unet", "cellvision.ops.losses:1"),
    (find_backward_arrows, "data/folder.py", "import cellvision.metrics.semantic", "(metrics)"),
    (find_backward_arrows, "runtime/tiles/tiling.py", "from cellvision.types import IGNORE", "(types)"),
    (find_backward_arrows, "runtime/tiling.py", "from ..data import coco", "(data)"),
    (find_backward_arrows, "training/task.py", "def f():\n    from cellvision.export import onnx", ":2 (training)"),
    (find_backward_arrows, "models/unet/model.py", "import_module('cellvision.data.folder')", "(data)"),
    (find_backward_arrows, "ops/a.py", "if TYPE_CHECKING:\n    from cellvision.data import coco", "(data)"),
    (find_backward_arrows, "helpers/a.py", "", "has no row"),
    (find_misplaced_packages, "runtime/predictor.py", "def f():\n    import torch.nn", "imports torch.nn"),
    (find_misplaced_packages, "models/unet/model.py", "from omegaconf import OmegaConf", "imports omegaconf"),
    (find_misplaced_packages, "export/onnx.py", "import lightning", "imports lightning"),
    (find_misplaced_packages, "data/coco.py", "import torch", "imports torch"),
    (find_misplaced_packages, "metrics/cells.py", "import torchmetrics", "imports torchmetrics"),
    (find_misplaced_packages, "__init__.py", "import torch", "cellvision:1"),
    (find_heavy_loads, "runtime/tiles/tiling.py", "from cellvision.data.augment import mixing", "loads torch"),
    (find_app_users, "cli.py", "from cellvision import app", "cellvision.cli:1"),
]


@pytest.mark.parametrize(("check", "path", "text", "message"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, check, path, text, message):
    package = tmp_path / "src" / PACKAGE
    for name, content in {
        "__init__.py": "",
        "app.py": "import hydra",
        "data/__init__.py": "",
        "data/coco.py": "",
        "data/augment/mixing.py": "import torch",
        "export/onnx.py": "",
        path: text,
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    faults = check(read_graph(tmp_path))
    assert len(faults) == 1
    assert message in faults[0]


@pytest.mark.parametrize("check", CHECKS)
def test_allowed_imports_are_not_faults(tmp_path, check):
    package = tmp_path / "src" / PACKAGE
    for name, content in {
        "__init__.py": "def __getattr__(name):\n    import cellvision.models",
        "types.py": "if TYPE_CHECKING:\n    from torch import Tensor",
        "app.py": "import hydra\nfrom cellvision.export import onnx",
        "data/images.py": "from cellvision.errors import DataError",
        "data/datamodule.py": "import lightning",
        "models/build.py": "import torch\nfrom ..ops import losses",
        "runtime/predictor.py": "from cellvision.data.images import read_image",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    assert check(read_graph(tmp_path)) == []
