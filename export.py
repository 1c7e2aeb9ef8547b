"""Make a bundle of a checkpoint: ``python export.py ckpt=RUN/checkpoints/best.ckpt bundle=DIR``."""

import hydra
from omegaconf import DictConfig

from cellvision import app
from cellvision.launch import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """Export with the composed settings."""
    app.run(app.export, cfg)


if __name__ == "__main__":
    launch(main)
