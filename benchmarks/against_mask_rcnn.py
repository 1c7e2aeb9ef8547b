"""Train CenterMask2 and torchvision's Mask R-CNN at once on the same data, each on its share of the processor threads.

python benchmarks/against_mask_rcnn.py --epochs 10 4 -- experiment=nuclei_instances data.root=PATH

Both start from random weights and run through the same task: the same crops, augmentation, optimizer, schedule, choice
of the best epoch, and score threshold fitted on training fields. A step of Mask R-CNN takes longer, so it gets fewer
epochs for the same time; the table says how many minutes, and minutes of processor time, each took. What stands behind
``--`` are settings of ``train.py`` for both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETS = ("centermask2", "mask_rcnn")
SHOWN = {
    "AP_dsb 0.5": "instance/ap_dsb_50",
    "AP_dsb 0.7": "instance/ap_dsb_70",
    "AP_dsb 0.9": "instance/ap_dsb_90",
    "mask AP": "mask/ap",
    "mask AP50": "mask/ap50",
    "box AP": "box/ap",
    "AJI": "instance/aji",
    "PQ": "instance/pq",
}


def main() -> None:
    """Train both, print a table; or, as one of its own processes, train one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs=2, default=(10, 4), metavar=("OURS", "THEIRS"))
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="of each")
    parser.add_argument("--out", type=Path, default=Path("runs/against_mask_rcnn"))
    parser.add_argument("--only", choices=NETS, help="train this one in this process")
    parser.add_argument("settings", nargs="*", help="of train.py")
    chosen = parser.parse_args()
    if chosen.only:
        train_one(chosen.only, chosen.settings)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads)}
    processes = {}
    began = time.monotonic()
    for net, epochs in zip(NETS, chosen.epochs, strict=True):
        folder = chosen.out / net
        if folder.exists():
            parser.error(f"{folder} exists; need a folder of its own for each comparison; try --out runs/another")
        folder.mkdir(parents=True)
        settings = [f"trainer.max_epochs={epochs}", f"run_dir={folder}", "bundle=false", *chosen.settings]
        with (folder / "output.txt").open("w") as output:
            processes[net] = subprocess.Popen(
                [sys.executable, __file__, "--only", net, "--", *settings],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        print(f"{net}: {folder}/output.txt", flush=True)
    minutes, processor_minutes = wait_for_all(processes, began)
    if any(process.returncode for process in processes.values()):
        sys.exit(1)
    scores = {net: json.loads((chosen.out / net / "results.json").read_text()) for net in NETS}
    print(f"{'':16}" + "".join(f"{net:>14}" for net in NETS))
    for name, key in SHOWN.items():
        print(f"{name:16}" + "".join(f"{scores[net]['held_out'][key]:14.3f}" for net in NETS))
    print(f"{'minutes':16}" + "".join(f"{minutes[net]:14.1f}" for net in NETS))
    print(f"{'processor min':16}" + "".join(f"{processor_minutes[net]:14.1f}" for net in NETS))


Minutes = dict[str, float]


def wait_for_all(processes: dict[str, subprocess.Popen[bytes]], began: float) -> tuple[Minutes, Minutes]:
    """Minutes, and minutes of processor time with those of the loader processes, that each took; says when one ends."""
    minutes, processor_minutes = {}, {}
    net_of = {process.pid: net for net, process in processes.items()}
    while len(minutes) < len(processes):
        pid, status, usage = os.wait4(-1, 0)
        net = net_of[pid]
        processes[net].returncode = os.waitstatus_to_exitcode(status)
        minutes[net] = (time.monotonic() - began) / 60
        processor_minutes[net] = (usage.ru_utime + usage.ru_stime) / 60
        print(f"{net}: exit {processes[net].returncode} after {minutes[net]:.1f} min", flush=True)
    return minutes, processor_minutes


def train_one(net: str, settings: list[str]) -> None:
    """What ``train.py`` does, with ``model`` replaced for Mask R-CNN, whose class stands beside this file."""
    import mask_rcnn  # noqa: F401  registers the net
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from cellvision.app import run, train

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=settings)
    if net == "mask_rcnn":
        OmegaConf.set_struct(cfg, False)
        cfg.model = {"_target_": "cellvision.models.build.build_model", "name": net, "kind": "instance"}
        OmegaConf.set_struct(cfg, True)
    run(train, cfg)


if __name__ == "__main__":
    main()
