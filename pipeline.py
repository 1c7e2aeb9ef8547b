"""From data to a model in production by one command: ``python pipeline.py``, any setting of conf/pipeline.yaml as
``key=value``; ``python pipeline.py target=azure`` submits it to Azure ML.
"""  # noqa: D205 - one sentence

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cellvision import app
from cellvision.launch import launch

if TYPE_CHECKING:
    from cellvision.release.pipeline import Plan

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="pipeline")
def main(cfg: DictConfig) -> None:
    """Run the pipeline with the composed settings."""
    app.run(run if HydraConfig.get().runtime.choices["target"] is None else submit, cfg)


def run(cfg: DictConfig) -> None:
    """Run all steps that are not done yet."""
    from cellvision.release.pipeline import build_steps, find_production
    from cellvision.release.steps import run_steps

    plan = read_plan(cfg)
    steps = build_steps(plan, find_production(plan))
    run_steps(steps, plan.folder, scripts=CONF.parent, tell=lambda line: print(line, flush=True))


def submit(cfg: DictConfig) -> None:
    """Submit them to Azure ML, with the options of the launcher that ``trainer=azure`` has."""
    from cellvision.cloud.pipeline import launch_pipeline

    outcome = launch_pipeline(read_plan(cfg), instantiate(HydraConfig.get().launcher).options, root=CONF.parent)
    if outcome.error is not None:
        raise outcome.error


def read_plan(cfg: DictConfig) -> "Plan":
    """The plan that settings describe."""
    from cellvision.release.pipeline import Plan
    from cellvision.release.record import AZURE

    plain = OmegaConf.to_container(cfg, resolve=True)
    plain["folder"] = Path(plain["folder"]).absolute()
    plain["models"] = AZURE if plain["models"] == str(AZURE) else Path(plain["models"]).absolute()
    settings = {
        name: None if words is None else tuple(map(str, words)) for name, words in plain.pop("settings").items()
    }
    return Plan(conf=CONF, **plain, **settings)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__, (CONF / "pipeline.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0], sep="\n")
    else:
        launch(main)
