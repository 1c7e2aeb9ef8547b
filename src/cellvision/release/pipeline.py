"""From data to production as a list of steps: prepare, train, compress, export, evaluate, register, deploy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cellvision.errors import ConfigError, explain
from cellvision.release.draft import check_name
from cellvision.release.gate import Bar
from cellvision.release.record import AZURE, load_json
from cellvision.release.registry import ModelRegistry
from cellvision.release.steps import Step

REGISTERED_NAME = "registered.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a pipeline is to do.

    Attributes:
        name: of the model in the registry.
        folder: of the run.
        models: registry.
        conf: folder of the scripts' settings.
        data, train, compress, export: settings of the scripts as on their command lines, "key=value" each; those of
            ``data`` go to all that read data. ``compress`` None leaves that step out.
        deploy: options of ``cellvision deploy``.
        tags: of the version that is registered, "key=value" each, beside those that its bundle tells.
        metric, at_least: what the gate asks for; see `Bar`.
        host, port: where the server answers; None leaves that to ``cellvision deploy``.
        keep: whether it stays.
    """

    name: str
    folder: Path
    models: Path
    conf: Path
    data: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    compress: tuple[str, ...] | None = ()
    export: tuple[str, ...] = ()
    deploy: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    metric: str = "cell/f1"
    at_least: float | None = None
    host: str | None = "127.0.0.1"
    port: int | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "train", "compress", "export"):
            for setting in getattr(self, name) or ():
                _check_setting(name, setting)
        for word in self.deploy:
            option = word.partition("=")[0]
            if option.startswith("--") and any(own.startswith(option) for own in _OWN_OPTIONS):
                got, need = f"settings.deploy entry {word!r}", "none of these: what was registered is deployed"
                raise ConfigError(explain(got=got, need=need, hint="leave it out"))
        check_name(self.name)
        if not isinstance(self.keep, bool):
            raise ConfigError(explain(got=f"keep={self.keep!r}", need="true or false", hint="keep=false"))
        Bar(metric=self.metric, at_least=self.at_least)

    @property
    def validation(self) -> Path:
        """Folder of the held-out fields."""
        return self.folder / "validation"

    @property
    def bundle(self) -> Path:
        """Folder of the bundle."""
        return self.folder / "bundle"


_OWN_OPTIONS = ("--sample", "--registered", "--version", "--rollback", "--stop", "--json")
"""Options of ``cellvision deploy`` that do the same, also where they are shortened."""

_OWN = ("run_dir", "resume", "ckpt", "bundle", "folder")
"""Settings of scripts that hold the steps together."""


def _check_setting(name: str, setting: str) -> None:
    """Raise ConfigError for words that are no setting, or one that only the pipeline can know."""
    key = setting.partition("=")[0].lstrip("+~")
    if "=" not in setting and not setting.startswith("~"):
        got, need = f"settings.{name} entry {setting!r}", "settings as on the command line, key=value"
        raise ConfigError(explain(got=got, need=need, hint=f"'settings.{name}=[\"seed=1\"]'"))
    if key in _OWN:
        got, need = f"settings.{name} entry {setting!r}", "no such entry: each step goes on with what the last one made"
        raise ConfigError(explain(got=got, need=need, hint="folder=DIR for another place of all of it"))


def build_steps(
    plan: Plan, production: Path | None = None, named: Mapping[str, Sequence[Path]] | None = None
) -> tuple[Step, ...]:
    """The steps of a plan. Their paths are those of the plan; nothing is read.

    Args:
        plan: what to do.
        production: bundle that is scored on the same fields, so that both can be compared: see `find_production`.
        named: files and folders that settings of steps name, by step, which decide what comes out, too.
    """
    compress = [] if plan.compress is None else [_compress(plan, plan.compress)]
    beside = [] if production is None else [_evaluate(plan, production, "production")]
    steps = (
        _prepare(plan),
        _train(plan),
        *compress,
        _export(plan, plan.folder / ("train" if plan.compress is None else "compress")),
        _evaluate(plan, plan.bundle, "bundle"),
        *beside,
        _register(plan, has_production=production is not None),
        _deploy(plan),
    )
    return tuple(replace(step, inputs=(*step.inputs, *(named or {}).get(step.name, ()))) for step in steps)


def _prepare(plan: Plan) -> Step:
    """Every field is read and checked; the held-out ones are written as files that anybody can score a bundle on."""
    return Step(
        name="prepare",
        command=("python", "prepare.py", write_setting("folder", plan.validation), *plan.data),
        inputs=_list_settings(plan),
        outputs=(plan.validation,),
    )


def _train(plan: Plan) -> Step:
    run = plan.folder / "train"
    fixed = (write_setting("run_dir", run), "resume=auto", "bundle=false")
    return Step(
        name="train",
        command=("python", "train.py", *fixed, *plan.data, *plan.train),
        inputs=_list_settings(plan),
        outputs=(run,),
        resumes=True,
    )


def _compress(plan: Plan, settings: Sequence[str]) -> Step:
    run, ckpt = plan.folder / "compress", _name_checkpoint(plan.folder / "train")
    start = ("python", "compress.py", write_setting("ckpt", ckpt))
    return Step(
        name="compress",
        command=(*start, write_setting("run_dir", run), "resume=auto", *settings),
        inputs=(*_list_settings(plan), ckpt),
        outputs=(run,),
        resumes=True,
    )


def _export(plan: Plan, run: Path) -> Step:
    ckpt = _name_checkpoint(run)
    places = (write_setting("ckpt", ckpt), write_setting("bundle", plan.bundle))
    return Step(
        name="export",
        command=("python", "export.py", *places, *plan.export),
        inputs=(*_list_settings(plan), ckpt),
        outputs=(plan.bundle,),
    )


def _evaluate(plan: Plan, bundle: Path, what: str) -> Step:
    files = ("--images", f"{plan.validation / 'images'}", "--coco", f"{plan.validation / 'instances_held_out.json'}")
    scores = plan.folder / f"scores_{what}.json"
    return Step(
        name="evaluate" if what == "bundle" else f"evaluate_{what}",
        command=("cellvision", "evaluate", "--bundle", f"{bundle}", *files, "--json", f"{scores}"),
        inputs=(bundle, plan.validation),
        outputs=(scores,),
    )


def _register(plan: Plan, *, has_production: bool) -> Step:
    scores = [plan.folder / "scores_bundle.json"]
    words = ["--name", plan.name, "--models", f"{plan.models}", "--scores", f"{scores[0]}", "--metric", plan.metric]
    words += [] if plan.at_least is None else ["--at-least", f"{plan.at_least}"]
    words += [word for tag in plan.tags for word in ("--tag", tag)]
    if has_production:
        scores.append(plan.folder / "scores_production.json")
        words += ["--production-scores", f"{scores[1]}"]
    record = plan.folder / REGISTERED_NAME
    return Step(
        name="register",
        command=("cellvision", "register", f"{plan.bundle}", *words, "--json", f"{record}"),
        inputs=(plan.bundle, *scores),
        outputs=(record,),
    )


def _deploy(plan: Plan) -> Step:
    """Without outputs: it is what becomes of the others' outputs, and is done each time.

    The version is that of the record, as the newest can be somebody else's by then.
    """
    record = plan.folder / REGISTERED_NAME
    words = ["--models", f"{plan.models}", "--registered", f"{record}", "--sample", f"{plan.validation / 'images'}"]
    words += [] if plan.host is None else ["--host", plan.host]
    words += [] if plan.port is None else ["--port", f"{plan.port}"]
    words += [*([] if plan.keep else ["--stop-after"]), *plan.deploy]
    return Step(
        name="deploy",
        command=("cellvision", "deploy", plan.name, *words),
        inputs=(record, plan.validation),
    )


def find_production(plan: Plan, *, has_new_fields: bool = False) -> Path | None:
    """Bundle of the version in production on this machine, unless this run has registered it by the same fields.

    Args:
        plan: of the run.
        has_new_fields: whether the run takes other held-out fields than it had.

    Raises:
        BundleError: it was altered, so that its scores would be those of another one.
        DataError: its record cannot be read.
    """
    registry = ModelRegistry(plan.models)
    production = registry.find_production(plan.name)
    record = plan.folder / REGISTERED_NAME
    # Fields that were written since are new, too: that run was broken off before it came to register.
    is_of_fields = record.is_file() and not has_new_fields and not _is_newer(plan.validation, record)
    own = load_json(record) if is_of_fields else {}
    if production is None or (own.get("name"), own.get("version")) == (production.name, production.version):
        return None
    return registry.get(plan.name, production.version).bundle


def _is_newer(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime > than.stat().st_mtime


def forget_lost(plan: Plan) -> None:
    """Remove the record of a version that the registry of this machine does not have any more: it is registered again.

    Else another one could have its number by now.
    """
    record, registry = plan.folder / REGISTERED_NAME, ModelRegistry(plan.models)
    if record.is_file() and plan.models != AZURE:
        own = load_json(record)
        there = registry.list_versions(plan.name) if plan.name in registry.list_names() else []
        if (own.get("version"), own.get("created")) not in [(found.version, found.created) for found in there]:
            record.unlink()


def write_setting(key: str, path: Path) -> str:
    r"""A setting of a script that names a path, in quotes where Hydra would read its signs as something else.

    Example:
        >>> write_setting("run_dir", Path("runs/a b")), write_setting("run_dir", Path("löwe's (2)"))
        ('run_dir=runs/a b', "run_dir='löwe\\'s (2)'")
    """
    text = str(path)
    if re.fullmatch(r"[A-Za-z0-9_./:@%+$ -]+", text) and text == text.strip():
        return f"{key}={text}"
    quoted = text.replace("'", "\\'")
    return f"{key}='{quoted}'"


def _name_checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def _list_settings(plan: Plan) -> tuple[Path, ...]:
    """What the scripts are set by; not the settings of the pipeline, which are in the commands."""
    return tuple(sorted(path for path in plan.conf.iterdir() if path.stem not in ("pipeline", "target")))
