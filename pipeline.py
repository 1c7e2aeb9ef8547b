"""From data to a model in production by one command: ``python pipeline.py``, any setting of conf/pipeline.yaml as
``key=value``; ``python pipeline.py target=azure`` submits it to Azure ML.
"""  # noqa: D205 - one sentence

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cellvision import app
from cellvision.composition import GROUPS, check_groups, check_settings, resolve
from cellvision.errors import ConfigError, explain
from cellvision.launch import compose_script, launch

if TYPE_CHECKING:
    from cellvision.release.pipeline import Plan

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="pipeline")
def main(cfg: DictConfig) -> None:
    """Run the pipeline with the composed settings."""
    app.run(run if HydraConfig.get().runtime.choices["target"] is None else submit, cfg)


def run(cfg: DictConfig) -> None:
    """Run all steps that are not done yet."""
    from cellvision.release.inputs import find_inputs
    from cellvision.release.options import parse_deploy
    from cellvision.release.pipeline import build_steps, find_production, forget_lost
    from cellvision.release.steps import compute_key, is_there, run_steps

    plan = read_plan(cfg)
    named = find_inputs(check_plan(plan), plan.folder)
    forget_lost(plan)
    first = build_steps(plan, named=named)[0]
    keys = {first.name: compute_key(first, plan.folder)}
    production = find_production(plan, has_new_fields=not is_there(first, plan.folder, keys[first.name]))
    steps = build_steps(plan, production, named)
    parse_deploy(steps[-1].command[2:])
    run_steps(steps, plan.folder, scripts=CONF.parent, keys=keys, tell=lambda line: print(line, flush=True))


def submit(cfg: DictConfig) -> None:
    """Submit them to Azure ML, with the options of the launcher that ``trainer=azure`` has."""
    from cellvision.cloud.pipeline import RUN, launch_pipeline

    plan = read_plan(cfg)
    options = instantiate(HydraConfig.get().launcher).options
    settings = check_plan(replace(plan, folder=RUN))  # what steps make is not on this machine
    outcome = launch_pipeline(plan, options, settings=settings, root=CONF.parent)
    if outcome.error is not None:
        raise outcome.error


def read_plan(cfg: DictConfig) -> "Plan":
    """The plan that settings describe."""
    from cellvision.release.pipeline import Plan
    from cellvision.release.record import AZURE

    plain = OmegaConf.to_container(cfg, resolve=True)
    if empty := [name for name in ("name", "folder", "models", "settings", "metric") if not plain[name]]:
        got = f"{empty[0]}={'null' if plain[empty[0]] is None else plain[empty[0]]}"
        raise ConfigError(explain(got=got, need="a value", hint=f"leave {empty[0]} out for the usual one"))
    plain["folder"] = Path(plain["folder"]).absolute()
    plain["models"] = AZURE if plain["models"] == str(AZURE) else Path(plain["models"]).absolute()
    for name, words in plain["settings"].items():
        if words is not None and not isinstance(words, list):
            shown = str(words).lower() if isinstance(words, bool) else words
            hint = "settings.compress=null to leave it out" if name == "compress" else f"'settings.{name}=[\"seed=1\"]'"
            raise ConfigError(explain(got=f"settings.{name}={shown}", need="a list of settings", hint=hint))
    nothing = {"compress": None}  # leaves the step out; of others, no settings
    settings = {
        name: nothing.get(name, ()) if words is None else tuple(map(str, words))
        for name, words in plain.pop("settings").items()
    }
    return Plan(conf=CONF, **plain, **settings)


def check_plan(plan: "Plan") -> dict[str, dict[str, Any]]:
    """The settings that each script would get, checked before the first begins, as the last may be hours away.

    Raises:
        ConfigError: settings that do not compose, lack a value, or that no class takes.
    """
    from cellvision.release.pipeline import build_steps

    found = {}
    for step in build_steps(plan):
        if step.command[0] == "python":
            script = Path(step.command[1]).stem
            try:
                settings = compose_script(script, step.command[2:])
                check_settings(settings)
                found[step.name] = resolve(settings)
                check_groups(found[step.name], GROUPS)
            except ConfigError as error:
                raise ConfigError(f"step {step.name}: {error}") from error
    return found


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__, (CONF / "pipeline.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0], sep="\n")
    else:
        launch(main)
