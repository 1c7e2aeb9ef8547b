"""``cellvision report``: reports of a sweep found, named, compared and drawn."""

import argparse
from dataclasses import replace

import pytest

from cellvision.commands.report import add_report, load_reports, run_report
from cellvision.errors import ConfigError, DataError
from cellvision.report.record import write_record
from report_rows import build_report, build_row


def write_run(folder, *, score, ms):
    folder.mkdir(parents=True)
    base = build_row("base", score=0.9, ms=40.0, size=100)
    report = build_report([base, build_row("prune", score=score, ms=ms, size=50, before="base")])
    write_record(report, folder / "compression.json")
    return report


@pytest.fixture
def sweep(tmp_path):
    for name, score, ms in (("macs=0.3", 0.8, 12.0), ("macs=0.5", 0.85, 20.0), ("macs=0.7", 0.84, 28.0)):
        write_run(tmp_path / "sweep" / name / "report", score=score, ms=ms)
    return tmp_path / "sweep"


def parse(*words):
    parser = argparse.ArgumentParser()
    add_report(parser)
    return parser.parse_args([str(word) for word in words])


def test_reports_below_a_folder_are_named_by_what_tells_them_apart(sweep):
    assert list(load_reports([sweep])) == ["macs=0.3", "macs=0.5", "macs=0.7"]
    twice = [sweep / "macs=0.3", sweep / "macs=0.3" / "report" / "compression.json", sweep / "macs=0.7"]
    assert list(load_reports(twice)) == ["macs=0.3", "macs=0.7"]
    assert list(load_reports([sweep / "macs=0.3"])) == ["report"]


def test_jobs_of_a_sweep_are_named_by_what_was_swept(tmp_path):
    """Hydra names their folders by numbers."""
    for number, macs in enumerate((0.3, 0.5)):
        write_run(tmp_path / str(number) / "report", score=0.8, ms=12.0)
        (tmp_path / str(number) / ".hydra").mkdir()
        words = f"- compress=[prune]\n- compress.prune.macs={macs}\n- predict=0\n"
        (tmp_path / str(number) / ".hydra" / "overrides.yaml").write_text(words)
    assert list(load_reports([tmp_path])) == ["0", "1"]
    (tmp_path / "multirun.yaml").touch()
    assert list(load_reports([tmp_path])) == ["0 (prune.macs=0.3)", "1 (prune.macs=0.5)"]
    (tmp_path / "1" / ".hydra" / "overrides.yaml").unlink()
    assert list(load_reports([tmp_path]))[1] == "1"
    assert list(load_reports([tmp_path / "0"])) == ["report"]


def test_the_sweep_is_printed_and_drawn(sweep, tmp_path, capsys):
    assert run_report(parse(sweep, "--out", tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if "prune" in line or "base" in line]
    assert rows == [
        ["macs=0.3", "prune", "0.800", "0.300", "yes"],
        ["macs=0.5", "prune", "0.850", "0.500", "yes"],
        ["macs=0.7", "prune", "0.840", "0.700"],
        ["base", "0.900", "1.000", "yes"],
    ]
    assert (tmp_path / "out" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"out holds the pareto\.png of another report"):
        run_report(parse(sweep, "--out", tmp_path / "out"))


def test_without_a_folder_nothing_is_written(sweep, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run_report(parse(sweep)) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no compression\.json; need a compression run that has ended"):
        load_reports([tmp_path])


def test_runs_of_other_sizes_are_refused(sweep):
    report = write_run(sweep / "other" / "report", score=0.8, ms=10.0)
    write_record(replace(report, size=(32, 32)), sweep / "other" / "report" / "compression.json")
    with pytest.raises(DataError, match="other has image size"):
        run_report(parse(sweep))
