"""Read and check all fields of a data group, and write the held-out ones as files to score bundles on.

``python prepare.py folder=DIR data=livedead data.root=PATH`` writes DIR/images and DIR/instances_held_out.json.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from cellvision import app
from cellvision.launch import launch


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    """Prepare with the composed settings."""
    app.run(prepare, cfg)


def prepare(cfg: DictConfig) -> None:
    """Check the splits, read every training field and write every held-out one."""
    from cellvision.composition import build_data, check_settings
    from cellvision.data.coco.writer import write_coco_folder

    check_settings(cfg)
    data = build_data(cfg.data)
    data.setup()
    held_out = data.held_out
    write_coco_folder(held_out, Path(cfg.folder), splits={"held_out": range(len(held_out))})
    fields = ", ".join(f"{len(view)} {split}" for split, view in data.views.items())
    print(f"data      {fields} fields; channels {', '.join(channel.name for channel in data.channels)}")
    print(f"held out  {len(held_out)} fields in {cfg.folder}")


if __name__ == "__main__":
    launch(main)
