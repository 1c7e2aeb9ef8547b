"""Scripts that submit to Azure, run in this process with a double in the place of the network."""

import logging
import re
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra._internal import utils as hydra_utils
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from cellvision.cloud import sdk

ROOT = Path(__file__).parents[1]
COMMIT = "1f0c9a" + 34 * "0"
NAMES = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE", "AZUREML_RUN_ID")


@contextmanager
def install(double):
    """A double in the place of the network, and the SDK imported; no workspace is named outside of the settings."""
    with sdk.quiet_sdk(), pytest.MonkeyPatch.context() as patch:
        double.install(patch)
        patch.setattr("cellvision.cloud.launching.describe_git", lambda _: {"commit": COMMIT, "changed": True})
        for name in NAMES:
            patch.delenv(name, raising=False)
        yield double


@contextmanager
def open_scripts(folder):
    """What runs a script with some settings, as if it had been started in a folder; Hydra leaves nothing behind."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where no config.json is
        patch.setattr(hydra_utils, "run_and_report", None)  # what the script puts there is taken away again

        def start(script, *settings):
            GlobalHydra.instance().clear()
            patch.setattr(sys, "argv", [str(ROOT / script), *settings])
            runpy.run_path(str(ROOT / script), run_name="__main__")

        yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()


def normalise(text, folder):
    """YAML without what differs from machine to machine and from commit to commit."""
    text = text.replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT")
    text = re.sub(r"(cv-[\w-]+)-[0-9a-f]{12}", r"\1-DIGEST", text)
    text = re.sub(r"(cellvision\.snapshot: )'?\w{12}'?", r"\1DIGEST", text)
    return re.sub(r"version: [0-9a-f]{64}", "version: DIGEST", text)
