"""The machine that is advised has the memory and the time; and what cannot be known is not made up."""

from datetime import date

import pytest

from cellvision.cloud.gpu_choice import USABLE, load_sizes, main, recommend
from cellvision.errors import CellvisionError

MEASURED = {"peak_gib": 10.0, "step_ms": 360.0, "steps": 100_000, "measured_on": "T4", "hours": 12.0}  # 10 h on one GPU


def test_the_table_is_dated_and_names_each_size_once():
    day, sizes = load_sizes()
    assert date.fromisoformat(day) >= date(2026, 11, 1)
    assert len({size.name for size in sizes}) == len(sizes) > 10
    # Azure writes the number of CPUs into the name.
    assert all(f"{size.cpus}a" in size.name or f"{size.cpus}i" in size.name for size in sizes)


@pytest.mark.parametrize(
    ("changed", "name", "nodes", "hours"),
    [
        ({}, "Standard_NC4as_T4_v3", 1, 10.0),
        ({"hours": 3.0}, "Standard_NC64as_T4_v3", 1, 2.5),
        ({"hours": 1.0}, "Standard_NC64as_T4_v3", 3, 10 / 12),
        ({"measured_on": "A100-80", "peak_gib": 60.0, "hours": 6}, "Standard_NC48ads_A100_v4", 1, 5.0),
        ({"peak_gib": 16 * USABLE + 0.1}, "Standard_NV36ads_A10_v5", 1, None),
        ({"peak_gib": 30.0}, "Standard_NC24ads_A100_v4", 1, None),
        ({"peak_gib": 75.0}, "Standard_NC40ads_H100_v5", 1, None),
    ],
)
def test_the_smallest_that_suffices(changed, name, nodes, hours):
    advice = recommend(**{**MEASURED, **changed})
    assert (advice.size.name, advice.nodes) == (name, nodes)
    assert advice.hours == (None if hours is None else pytest.approx(hours))
    assert advice.size.gpu_memory_gb * USABLE >= {**MEASURED, **changed}["peak_gib"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peak_gib": 200.0}, r"200 GiB at the peak; need at most 124, of H200-141; try: a smaller data\.batch_size"),
        ({"measured_on": "T5"}, r"unknown measured_on 'T5'; need one of: A10, .*; try: 'T4'"),
        (
            {"steps": 9_000_000_000, "hours": 0.01},
            r"hours of one T4 in 0\.01; need no more than 100 machines; try: --hours ",
        ),
        ({"hours": 0.0}, r"hours=0\.0; need a number above 0"),
        ({"step_ms": float("nan")}, r"step_ms=nan; need a number above 0"),
    ],
)
def test_what_has_no_answer_is_explained(changed, said):
    with pytest.raises(CellvisionError, match=said):
        recommend(**{**MEASURED, **changed})


def test_the_command_prints_settings_for_the_launcher(capsys):
    words = [text for key, value in MEASURED.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "1 x Standard_NC4as_T4_v3: 1 T4 of 16 GB each; 10.0 h at best" in printed
    assert "hydra.launcher.instance_type=Standard_NC4as_T4_v3 hydra.launcher.gpus=1 hydra.launcher.nodes=1" in printed
    assert main([*words[:-1], "-1"]) == 2
    assert capsys.readouterr().err == "error: hours=-1.0; need a number above 0; try: what was measured\n"
