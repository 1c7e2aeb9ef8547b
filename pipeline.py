"""From data to a model in production by one command: ``python pipeline.py``, any setting of conf/pipeline.yaml as
``key=value``.
"""  # noqa: D205 - one sentence

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from cellvision import app
from cellvision.launch import launch

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="pipeline")
def main(cfg: DictConfig) -> None:
    """Run the pipeline with the composed settings."""
    app.run(run, cfg)


def run(cfg: DictConfig) -> None:
    """Run all steps that are not done yet."""
    from cellvision.release.pipeline import Plan, build_steps
    from cellvision.release.steps import run_steps

    plain = OmegaConf.to_container(cfg, resolve=True)
    for name in ("folder", "models"):
        plain[name] = Path(plain[name]).absolute()
    settings = {
        name: None if words is None else tuple(map(str, words)) for name, words in plain.pop("settings").items()
    }
    plan = Plan(conf=CONF, **plain, **settings)
    run_steps(build_steps(plan), plan.folder, scripts=CONF.parent, tell=lambda line: print(line, flush=True))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__, (CONF / "pipeline.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0], sep="\n")
    else:
        launch(main)
