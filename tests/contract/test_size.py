"""Files and functions stay short, have a name that says something, and say what they give."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 300, 40
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "core"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def list_sources(root):
    """Library, plugins and root scripts."""
    return sorted([*(root / "src").rglob("*.py"), *root.glob("*.py")])


def find_long_files(root):
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in list_sources(root)}
    return [f"{path.relative_to(root)}: {size} lines" for path, size in sizes.items() if size > LONGEST_FILE]


def find_long_functions(root):
    faults = []
    for path in list_sources(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, FUNCTIONS) and (size := count_lines(node)) > LONGEST_FUNCTION:
                faults.append(f"{path.relative_to(root)}:{node.lineno} {node.name}: {size} lines")
    return faults


def count_lines(function):
    """Lines from ``def`` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def find_empty_names(root):
    sources = [path.relative_to(root) for path in list_sources(root)]
    return [str(path) for path in sources if EMPTY_NAMES & {part.removesuffix(".py").strip("_") for part in path.parts}]


def list_public(root):
    """(place, whether documented) of every module, public class, function and method of the library."""
    found = []
    for path in sorted((root / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = str(path.relative_to(root))
        found.append((place, ast.get_docstring(tree) is not None))
        found += _list_public_in(tree, place)
    return found


def _list_public_in(parent, place):
    found = []
    for node in parent.body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_") or _is_repeat(node):
            continue
        found.append((f"{place}:{node.lineno} {node.name}", ast.get_docstring(node) is not None))
        if isinstance(node, ast.ClassDef):
            found += _list_public_in(node, place)
    return found


def _is_repeat(node):
    """A setter or an overload: what it belongs to carries the docstring."""
    return any(ast.unparse(item).split(".")[-1] in ("setter", "overload") for item in node.decorator_list)


def find_undocumented(root):
    return [place for place, documented in list_public(root) if not documented]


CHECKS = [find_long_files, find_long_functions, find_empty_names, find_undocumented]


@pytest.mark.parametrize("check", CHECKS)
def test_the_library_and_its_scripts(check):
    assert check(ROOT) == []


def test_a_share_of_the_library_is_documentation():
    """At least 30 lines of docstrings and comments for 100 of code: shapes, units and reasons are written down."""
    lines = documented = 0
    for path in sorted((ROOT / "src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node) is not None:
                documented += node.body[0].end_lineno - node.body[0].lineno + 1
        documented += sum(line.lstrip().startswith("#") for line in text.splitlines())
        lines += sum(bool(line.strip()) for line in text.splitlines())
    assert documented / (lines - documented) > 0.3


FUNCTION_OF_41 = "def f():\n" + '    """Gives nothing.\n\n    At all.\n    """\n' + "    x = 1\n" * 40
PLANTED = [
    (find_long_files, "ops/long.py", "x = 1\n" * 301, "301 lines"),
    (find_long_functions, "ops/long.py", FUNCTION_OF_41, "long.py:1 f: 41 lines"),
    (find_long_functions, "ops/long.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 40, "f: 41 lines"),
    (find_empty_names, "ops/utils.py", '"""Anything."""', "utils.py"),
    (find_empty_names, "common/masks.py", '"""Anything."""', "common"),
    (find_undocumented, "ops/a.py", "x = 1", "a.py"),
    (find_undocumented, "ops/a.py", '"""Module."""\ndef f():\n    pass', "a.py:2 f"),
    (
        find_undocumented,
        "ops/a.py",
        '"""Module."""\nclass A:\n    """A."""\n    def f(self):\n        pass',
        "a.py:4 f",
    ),
]


@pytest.mark.parametrize(("check", "path", "text", "message"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, check, path, text, message):
    source = tmp_path / "src" / "cellvision" / path
    source.parent.mkdir(parents=True)
    source.write_text(text)
    faults = check(tmp_path)
    assert len(faults) == 1
    assert message in faults[0]


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_short_named_and_documented_is_no_fault(tmp_path, check):
    source = tmp_path / "src" / "cellvision" / "masks.py"
    source.parent.mkdir(parents=True)
    shorter = FUNCTION_OF_41.replace("    x = 1\n", "", 1)
    source.write_text('"""Masks."""\n' + shorter + "\ndef _private():\n    pass\n")
    assert check(tmp_path) == []
