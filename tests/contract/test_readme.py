"""What the documents tell a reader to type can be typed, and what they point at is there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PICTURE_BY_LINE = 30

BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|<(?:img|a|source)\b[^>]*?\b(?:src|href|srcset)=\"([^\"]+)\"")
PICTURE = re.compile(r"!\[[^\]]*\]\([^)\s]+\)|<img\b[^>]*\bsrc=")
ORDINARY = {"az", "git", "cd", "source", "ls", "cat", "head", "tensorboard", "pip", "docker", "open"}


def read_commands(text):
    """The commands of all bash blocks, as lists of words."""
    commands = []
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";&|"):
                    commands += [words] if words else []
                    words = []
                else:
                    words.append(word)
    return commands


def check_command(words, root):
    """Raise unless the command would be understood."""
    while "=" in words[0]:
        words = words[1:]  # CUDA_VISIBLE_DEVICES=0 python ..
    words = words[: next((i for i, word in enumerate(words) if word[0] in "<>"), len(words))]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        check_make(arguments, root)
    elif program in ("python", "python3") and arguments[:2] != ["-m", "cellvision"]:
        check_script(arguments, root)
    elif program in ("cellvision", "python", "python3"):
        check_cli(arguments[2:] if program != "cellvision" else arguments)
    else:
        installed = (Path(sys.executable).parent / program).exists()
        assert installed or program in ORDINARY, f"unknown command {program!r}"


def check_make(arguments, root):
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {word for word in arguments if "=" not in word and not word.startswith("-")}
    assert wanted <= targets, f"the Makefile has no target {', '.join(sorted(wanted - targets))}"


def check_script(arguments, root):
    if arguments[0] == "-m":
        return
    script = root / arguments[0]
    assert script.is_file(), f"there is no {arguments[0]}"
    if (root / "conf" / f"{script.stem}.yaml").is_file():
        compose(root / "conf", script.stem, arguments[1:])


def compose(folder, name, arguments):
    """The settings that Hydra would make of the command line; of a sweep, those of its first point."""
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = [word for word in arguments if not word.startswith("-") and word not in ("job", "hydra", "all")]
    first = [
        f"{override.input_line.partition('=')[0]}={next(iter(override.sweep_string_iterator()))}"
        if override.is_sweep_override()
        else override.input_line
        for override in OverridesParser.create().parse_overrides(overrides)
    ]
    with hydra.initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        return hydra.compose(name, overrides=first)


def check_cli(arguments):
    from cellvision.cli import build_parser

    try:
        build_parser().parse_args(arguments)
    except SystemExit as stop:
        if stop.code:  # --help stops as well, with 0
            pytest.fail(f"the command line of cellvision does not take {shlex.join(arguments)}")


def find_dead_links(document):
    """Relative targets, of links and pictures outside code, that do not exist."""
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", document.read_text(encoding="utf-8")))
    targets = ["".join(groups) for groups in LINK.findall(text)]
    relative = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    return [target for target in relative if not (document.parent / target).exists()]


def find_first_picture(text):
    """Line number of the first picture, or None."""
    return next((number for number, line in enumerate(text.splitlines(), 1) if PICTURE.search(line)), None)


def list_commands():
    return [
        pytest.param(words, id=f"{path.name}: {shlex.join(words)}"[:120])
        for path in DOCUMENTS
        for words in read_commands(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("words", list_commands())
def test_command_of_a_document_is_understood(words):
    check_command(words, ROOT)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_exist(document):
    assert find_dead_links(document) == []


def test_readme_shows_cells_early_and_starts_with_make():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (find_first_picture(text) or 10**6) <= PICTURE_BY_LINE
    assert ["make", "train"] in read_commands(text)


def test_commands_are_read_as_a_shell_reads_them():
    text = (
        "```bash\n$ make train  # four minutes\nA=1 python train.py \\\n  optim.lr=1e-3 'x=[1, 2]' && cd a | b\n```\n"
    )
    text += "```python\nmake nothing\n```\n"
    assert read_commands(text) == [
        ["make", "train"],
        ["A=1", "python", "train.py", "optim.lr=1e-3", "x=[1, 2]"],
        ["cd", "a"],
        ["b"],
    ]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "Makefile").write_text("train: setup\n\techo\nsetup:\n")
    (tmp_path / "train.py").touch()
    for name, text in {
        "train.yaml": "defaults:\n  - model: unet\n  - _self_\nlr: 1\n",
        "model/unet.yaml": "depth: 4\n",
    }.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "make train PYTHON=python3.12",
        "python train.py model=unet model.depth=3",
        ".venv/bin/python train.py -m lr=1,2 model.depth=2,3 > log.txt",
        "CUDA_VISIBLE_DEVICES=0 python train.py --help",
        "git clone ADDRESS",
    ],
)
def test_good_commands_pass(project, line):
    for words in read_commands(f"```bash\n{line}\n```\n"):
        check_command(words, project)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("make trian", "no target trian"),
        ("python traim.py", "there is no traim.py"),
        ("python train.py model=unett", "unett"),
        ("python train.py model.deep=3", "deep"),
        ("python train.py -m lrr=1,2", "lrr"),
        ("rm -rf runs", "unknown command 'rm'"),
    ],
)
def test_a_planted_fault_is_found(project, line, message):
    (words,) = read_commands(f"```bash\n{line}\n```\n")
    with pytest.raises(Exception, match=message):
        check_command(words, project)


def test_unknown_verbs_of_the_cellvision_command_are_found():
    with pytest.raises(pytest.fail.Exception, match="does not take predct"):
        check_command(["cellvision", "predct", "--bundle", "DIR"], ROOT)


def test_dead_links_are_found(tmp_path):
    (tmp_path / "there.png").touch()
    (tmp_path / "README.md").write_text(
        "![a](there.png) [b](gone.md#part) [c](#here) [d](https://example.org)\n"
        '<img width="9" src="gone.png"> `[e](code.md)`\n```\n[f](block.md)\n```\n'
    )
    assert find_dead_links(tmp_path / "README.md") == ["gone.md", "gone.png"]


def test_first_picture_is_found():
    assert find_first_picture("a\n[no](b.png)\n![yes](c.png)\n") == 3
    assert find_first_picture('<img src="c.png">') == 1
    assert find_first_picture("nothing") is None
