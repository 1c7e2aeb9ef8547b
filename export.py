"""Make a bundle of a checkpoint: ``python export.py ckpt=RUN/checkpoints/best.ckpt bundle=DIR``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cellvision import app
from cellvision.launch import launch

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """Export with the composed settings."""
    app.run(app.export, cfg)


def describe_settings() -> str:
    """Every setting with its usual value and what it means: the files they come from, which say just that."""
    _, settings, _ = (CONF / "export.yaml").read_text(encoding="utf-8").split("\n\n")
    engines = (CONF / "trt" / "int8.yaml").read_text(encoding="utf-8").splitlines()[2:]
    data = ", ".join(sorted(path.stem for path in (CONF / "data").glob("[!_]*.yaml")))
    return "\n".join(
        [
            __doc__.replace("``", ""),
            "Settings as KEY=VALUE, those in groups as calibration.method=entropy; with their usual values:\n",
            settings,
            f"\ndata=NAME, and settings as data.root=PATH, take other fields than those of the run: {data}",
            "\n+trt=fp32 | fp16 | int8 builds engines for NVIDIA GPUs beside the graphs; settings as trt.tf32=true:\n",
            *engines,
        ]
    )


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(describe_settings())
    else:
        launch(main)
