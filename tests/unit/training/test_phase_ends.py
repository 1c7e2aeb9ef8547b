"""Each phase of a run ends with a net of its own, however seldom the run is validated."""

import pytest

from cellvision.compression.distill.step import Distill
from cellvision.compression.prune.step import Prune
from cellvision.training.callbacks import LastValidation
from cellvision.training.checkpoint import load_net
from compressed_fit import build_data, fit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("every", [2, 3])
def test_every_phase_leaves_the_net_that_its_last_cut_made(tmp_path, every):
    """Validation falls on no end of a phase here; the teacher is the net of the first one."""
    steps = [Prune(epochs=3, macs=0.3, steps=3, batches=1), Distill(epochs=1)]
    fit(tmp_path, steps, LastValidation(), data=build_data(), base_epochs=1, check_val_every_n_epoch=every)
    behind = {}
    for name in ("base", "prune", "distill"):
        net, record = load_net(tmp_path / "checkpoints" / f"{name}.ckpt")
        behind[name] = ([step.get("done") for step in record.recipe], sum(value.numel() for value in net.parameters()))
    assert behind["base"][0] == []
    assert behind["prune"][0] == [3]
    assert behind["distill"] == ([3, None], behind["prune"][1])
    assert behind["prune"][1] < behind["base"][1]
