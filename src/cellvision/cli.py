"""The ``cellvision`` command: verbs on files. Only this door is read at start; each verb imports what it needs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import cellvision
from cellvision.commands.benchmarking.options import add_benchmark, run_benchmark
from cellvision.commands.engine import add_engine, open_predictor
from cellvision.commands.lines import to_line
from cellvision.commands.release import add_deploy, add_models, add_register, run_deploy, run_models, run_register
from cellvision.commands.report import add_report, run_report
from cellvision.commands.serve import add_serve, run_serve
from cellvision.errors import CellvisionError, ConfigError, explain, to_sentence

VERBS = ("predict", "evaluate", "benchmark", "report", "info", "serve", "register", "models", "deploy")
EXIT_OK, EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 all done, 1 some images failed, 2 nothing done, 130 interrupted.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    chosen = build_parser().parse_args(arguments)
    # Without a handler, the TIFF reader's own complaints would reach stderr beside the one line that explains them.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        print("cellvision: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (CellvisionError, OSError, MemoryError) as error:
        if chosen.debug:
            raise
        print(f"cellvision: {to_line(to_sentence(error))}", file=sys.stderr)
        return EXIT_ERROR


def build_parser() -> argparse.ArgumentParser:
    """The command line of all verbs; after parsing, ``run`` is the verb's function."""
    parser = _Parser(prog="cellvision", description="Cells from microscopy images, by a bundle.")
    parser.add_argument("--version", action=_PrintVersion)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar=f"{{{','.join(VERBS)}}}")
    _add_predict(verbs.add_parser("predict", help="find the cells of images", description=_run_predict.__doc__))
    _add_evaluate(
        verbs.add_parser(
            "evaluate", help="score predictions or a bundle against truth", description=_run_evaluate.__doc__
        )
    )
    for name, about, add, run in (
        ("benchmark", "measure bundles side by side", add_benchmark, run_benchmark),
        ("report", "compare compression runs", add_report, run_report),
        ("serve", "answer over HTTP with the cells of images", add_serve, run_serve),
        ("register", "put a bundle into a registry, if it is good enough", add_register, run_register),
        ("models", "list what is in a registry", add_models, run_models),
        ("deploy", "take a registered bundle into production", add_deploy, run_deploy),
    ):
        verb = verbs.add_parser(name, help=about, description=run.__doc__)
        add(verb)
        _add_debug(verb, run)
    info = verbs.add_parser("info", help="show what is in a bundle", description=_run_info.__doc__)
    info.add_argument("bundle", type=Path, help="bundle folder")
    info.add_argument("--all", action="store_true", help="show all that the manifest holds")
    _add_debug(info, _run_info)
    return parser


class _Parser(argparse.ArgumentParser):
    """One that answers a wrong command line as all that is wrong is answered: in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"{self.prog}: {to_line(message)}; try: {self.prog} --help\n")


class _PrintVersion(argparse.Action):
    # argparse's own version action wants the text when the parser is built, and finding it takes longer than --help.
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"cellvision {cellvision.__version__}")
        parser.exit()


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="TIFF, PNG or JPEG, or a folder of them")
    parser.add_argument(
        "--out", type=_to_folder, required=True, metavar="DIR", help="folder for the results of this run alone"
    )
    add_engine(parser)
    _add_image_meaning(parser, channels_help="names of the images' channels in order, e.g. hoechst,pi")
    parser.add_argument("--pixel-size-um", type=float, metavar="F", help="edge of a pixel, instead of the files' own")
    parser.add_argument("--no-overlay", action="store_true", help="leave out the overlay pictures")
    _add_debug(parser, _run_predict)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("score a file of predictions")
    files.add_argument("predictions", nargs="?", type=Path, metavar="PREDICTIONS.json", help="COCO results with masks")
    files.add_argument("--truth", type=Path, metavar="FILE", help="COCO annotations of the same images")
    files.add_argument(
        "--max-dets", type=_split_numbers, metavar="A,B", help="predictions per image that count (100,500,2000)"
    )
    files.add_argument("--areas", choices=("livecell", "coco"), help="bounds of small and large cells (livecell)")
    threshold = files.add_mutually_exclusive_group()
    threshold.add_argument("--score-threshold", type=float, metavar="X", help="for all but COCO's scores (0.5)")
    threshold.add_argument("--fit", action="store_true", help="choose that threshold on these images")
    files.add_argument(
        "--min-visible", type=float, metavar="X", help="a cell of which better ones leave a smaller share is none (0.5)"
    )
    files.add_argument("--min-area-px", type=int, metavar="N", help="a cell with fewer visible pixels is none (1)")
    files.add_argument("--only-predicted", action="store_true", help="leave out images without any prediction")
    files.add_argument("--skip-faulty", action="store_true", help="leave out true cells that cannot be read")
    files.add_argument("--out", type=Path, metavar="OUT", help="file for the scores")
    bundle = parser.add_argument_group("score a bundle")
    bundle.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    truth = bundle.add_mutually_exclusive_group()
    truth.add_argument("--labels", type=Path, metavar="DIR", help="label images of the same names")
    truth.add_argument("--coco", type=Path, metavar="FILE", help="COCO annotations")
    bundle.add_argument("--classes", type=Path, metavar="CSV", help="with --labels: table with image, label, class")
    bundle.add_argument("--json", type=Path, metavar="OUT", help="file for the scores")
    add_engine(bundle, required=False)
    _add_image_meaning(
        bundle, channels_help="name or name:role of the images' channels in order, e.g. hoechst:nuclear,pi:dead"
    )
    _add_debug(parser, _run_evaluate)
    parser.set_defaults(refuse=parser.error)


def _add_image_meaning(parser: argparse._ActionsContainer, *, channels_help: str) -> None:
    parser.add_argument("--channels", type=_split_names, metavar="A,B", help=channels_help)
    parser.add_argument(
        "--intensity-scale", type=float, metavar="F", help="factor to the training counts, e.g. 257 from 8 to 16 bits"
    )


def _add_debug(parser: argparse.ArgumentParser, run: object) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _to_folder(text: str) -> Path:
    if not text:  # of a variable of the shell that is not set; it would be the folder where one is
        raise argparse.ArgumentTypeError("'' is no folder like cells; . is the one here")
    return Path(text)


def _split_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers like 100,500,2000") from None


def _run_predict(chosen: argparse.Namespace) -> int:
    """Write for each image a label TIFF and an overlay PNG, and for the run cells.csv and fields.csv."""
    from cellvision.commands.predict import collect_images, predict_images
    from cellvision.runtime.files.claim import claim_folder

    images = collect_images(chosen.images, out_dir=chosen.out)
    with claim_folder(chosen.out):
        failed = predict_images(
            open_predictor(chosen),
            images,
            chosen.out,
            channel_names=chosen.channels,
            pixel_size_um=chosen.pixel_size_um,
            intensity_scale=chosen.intensity_scale,
            overlay=not chosen.no_overlay,
        )
    if not failed:
        return EXIT_OK
    for error in failed.values():
        print(f"cellvision: {to_line(str(error))}", file=sys.stderr)
    if len(images) > 1:
        print(f"cellvision: {len(failed)} of {len(images)} images failed", file=sys.stderr)
    if chosen.debug:
        raise next(iter(failed.values()))
    return EXIT_ERROR if len(failed) == len(images) else EXIT_SOME_FAILED


def _run_evaluate(chosen: argparse.Namespace) -> int:
    """Score a file of predictions: COCO's average precision and all else that is made of masks. Or score a bundle.

    A bundle is scored by pixels, cells, classes, and the viability of each field next to an Otsu baseline.
    """
    _check_evaluate(chosen)
    return _evaluate_file(chosen) if chosen.predictions else _evaluate_bundle(chosen)


def _check_evaluate(chosen: argparse.Namespace) -> None:
    """Leave with a usage error unless the options are all of one of the two ways."""
    of_file = {"--truth": chosen.truth, "--max-dets": chosen.max_dets, "--areas": chosen.areas, "--out": chosen.out}
    of_file |= {"--score-threshold": chosen.score_threshold, "--fit": chosen.fit or None}
    of_file |= {"--min-visible": chosen.min_visible, "--min-area-px": chosen.min_area_px}
    of_file |= {"--skip-faulty": chosen.skip_faulty or None, "--only-predicted": chosen.only_predicted or None}
    of_bundle = {
        "--bundle": chosen.bundle,
        "--images": chosen.images,
        "--labels or --coco": chosen.labels or chosen.coco,
    }
    needed = {"--truth": chosen.truth} if chosen.predictions else dict(of_bundle)
    of_bundle |= {"--json": chosen.json} | {
        f"--{name.replace('_', '-')}": getattr(chosen, name)
        for name in ("classes", "channels", "intensity_scale", "provider_option", "threads", "tile_px", "overlap_px")
    }
    foreign = of_bundle if chosen.predictions else of_file
    if given := [name for name, value in foreign.items() if value is not None]:
        twins = {"--json": "--out", "--out": "--json", "--labels or --coco": "--truth", "--truth": "--coco"}
        meant = [f"{twins[name]} instead of {name}" for name in given if name in twins]
        where = "without" if chosen.predictions else "with"
        hint = f"; try: {', '.join(meant)}" if meant else ""
        chosen.refuse(f"{', '.join(given)}: only {where} a file of predictions{hint}")
    if missing := [name for name, value in needed.items() if value is None]:
        chosen.refuse(f"the following arguments are required: {', '.join(missing)}")


def _check_not_input(option: str, out: Path | None, *inputs: Path | None) -> None:
    """Raise ConfigError where the file for the scores is one of those that they are made from."""
    if out is not None and out.exists() and any(path and path.exists() and out.samefile(path) for path in inputs):
        got = f"{option} {out}, which is read for the scores"
        raise ConfigError(explain(got=got, need="a file of its own", hint=f"{option} {out.parent / 'scores.json'}"))


def _evaluate_file(chosen: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from cellvision.commands.evaluation.instances import evaluate_predictions, load_truth, write_evaluation
    from cellvision.commands.evaluation.tables import print_evaluation
    from cellvision.commands.progress import show_progress
    from cellvision.runtime.files.writers import StagedFiles

    names = ("max_dets", "areas", "score_threshold", "min_visible", "min_area_px", "only_predicted")
    settings = {name: value for name in names if (value := getattr(chosen, name)) is not None}
    if chosen.fit:
        settings["score_threshold"] = None
    _check_not_input("--out", chosen.out, chosen.predictions, chosen.truth)
    # Staged before the work: a place that cannot be written must not cost an evaluation.
    with StagedFiles(chosen.out.parent) if chosen.out else nullcontext() as staged:
        part = staged.path(chosen.out.name) if staged else None
        truth = load_truth(chosen.truth, skip_faulty=chosen.skip_faulty)
        with show_progress("evaluate", unit="images") as progress:
            evaluation = evaluate_predictions(chosen.predictions, truth, progress=progress, **settings)
        if part:
            write_evaluation(evaluation, part)
    print_evaluation(evaluation)
    return EXIT_OK


def _evaluate_bundle(chosen: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from cellvision.commands.evaluate import evaluate_bundle, print_scores, write_scores
    from cellvision.commands.evaluation.truth import open_truth
    from cellvision.commands.progress import show_progress
    from cellvision.runtime.files.writers import StagedFiles

    _check_not_input("--json", chosen.json, chosen.coco, chosen.classes)
    predictor = open_predictor(chosen)
    truth = open_truth(
        predictor.manifest,
        images=chosen.images,
        labels=chosen.labels,
        coco=chosen.coco,
        table=chosen.classes,
        channels=chosen.channels,
    )
    # Staged before the work: a place that cannot be written must not cost an evaluation.
    with StagedFiles(chosen.json.parent) if chosen.json else nullcontext() as staged:
        part = staged.path(chosen.json.name) if staged else None
        with show_progress("evaluate", unit="fields") as progress:
            evaluation = evaluate_bundle(predictor, truth, intensity_scale=chosen.intensity_scale, progress=progress)
        if part:
            write_scores(evaluation, part)
    print_scores(evaluation)
    return EXIT_OK


def _run_info(chosen: argparse.Namespace) -> int:
    """Show what a bundle is, after checking the hashes of its graphs."""
    from cellvision.bundle import load_manifest
    from cellvision.commands.info import print_manifest, print_summary

    manifest = load_manifest(chosen.bundle)
    if chosen.all:
        print_manifest(manifest)
    else:
        print_summary(manifest, chosen.bundle)
    return EXIT_OK
