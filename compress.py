"""Make a trained net smaller: ``python compress.py``, then predict with ``runs/latest_compressed/bundle``.

Prunes, distils and quantises the net of the newest run of train.py in one run that can be resumed, and ends with a
table, a picture and a bundle. Another net: ``ckpt=RUN/checkpoints/best.ckpt``; other steps: ``compress=[prune,qat]``; a
sweep: ``-m compress.prune.macs=0.3,0.5,0.7``, then ``cellvision report RUNS --out DIR`` draws accuracy against time.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cellvision import app
from cellvision.launch import launch

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="compress")
def main(cfg: DictConfig) -> float | None:
    """Compress with the composed settings; sweepers maximise the returned score."""
    return app.run(app.compress, cfg)


def describe_settings() -> str:
    """Every setting with its usual value and what it means: the files they come from, which say just that."""
    groups, *settings = (CONF / "compress.yaml").read_text(encoding="utf-8").split("\n\n")[:-1]
    lines = [__doc__.replace("``", ""), "Settings as KEY=VALUE; with their usual values:\n", *settings]
    for name in ("prune", "distill", "qat"):
        _, about, _, *rest = (CONF / "compress" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        lines += [f"\ncompress.{name}.KEY=VALUE: {about.removeprefix('# ')}\n", *rest]
    rest = (CONF / "report" / "default.yaml").read_text(encoding="utf-8").splitlines()
    lines += ["\nreport.KEY=VALUE\n", *rest, "\nGroups, as in train.py:\n", *groups.splitlines()[2:]]
    return "\n".join(lines)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(describe_settings())
    else:
        launch(main)
