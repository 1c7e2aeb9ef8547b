"""Train a net: ``python train.py``, any setting as ``key=value``, ``-m`` for a sweep, ``--help`` for the choices."""

import hydra
from omegaconf import DictConfig

from cellvision import app
from cellvision.launch import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train with the composed settings; sweepers maximise the returned score."""
    return app.run(app.train, cfg)


if __name__ == "__main__":
    launch(main)
