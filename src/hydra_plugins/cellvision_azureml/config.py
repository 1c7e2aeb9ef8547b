"""The settings of ``hydra.launcher`` under ``hydra/launcher=azureml``."""

# No "from __future__ import annotations" here: Hydra runs this file without making it a module that can be found, which
# is where dataclasses would look for what annotations in strings mean.
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from cellvision.cloud.options import LaunchOptions


@dataclass
class AzureMLConf(LaunchOptions):
    """What ``LaunchOptions`` says, with the workspace of the environment, and the class that takes it."""

    subscription_id: str | None = "${oc.env:AZURE_SUBSCRIPTION_ID,null}"
    resource_group: str | None = "${oc.env:AZURE_RESOURCE_GROUP,null}"
    workspace: str | None = "${oc.env:AZURE_ML_WORKSPACE,null}"
    _target_: str = "hydra_plugins.cellvision_azureml.launcher.AzureMLLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="azureml", node=AzureMLConf, provider="cellvision")
