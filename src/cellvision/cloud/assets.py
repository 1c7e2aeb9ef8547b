"""Data that lie in Azure: which version ``latest`` is today, and how a job gets at them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellvision.cloud.faults import explained
from cellvision.cloud.options import ASSET

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


@dataclass(frozen=True, kw_only=True)
class DataInput:
    """Address of an asset, with its version where it has one, and its kind: uri_folder, uri_file or custom_model."""

    path: str
    kind: str


def find_inputs(assets: Iterable[tuple[str, str]], client: MLClient | None) -> dict[str, DataInput]:
    """Where data assets are, by what the command line calls them; ``latest`` becomes a number, which is said.

    Args:
        assets: pairs of a setting and the asset that it names.
        client: of the workspace; None asks nobody: ``latest`` stays, and only a name tells a file from a folder.

    Raises:
        CloudError: an asset that does not exist, or no answer.
    """
    found: dict[str, DataInput] = {}
    for key, asset in assets:
        if asset not in found:
            found[asset] = _guess(key, asset) if client is None else _ask(client, key, asset)
    return found


def _guess(key: str, asset: str) -> DataInput:
    path = asset.replace(":latest", "@latest") if ASSET.fullmatch(asset) else asset
    is_file = key == "ckpt" or (asset.startswith("azureml://") and Path(asset).suffix)
    return DataInput(path=path, kind="uri_file" if is_file else "uri_folder")


def _ask(client: MLClient, key: str, asset: str) -> DataInput:
    if (parts := ASSET.fullmatch(asset)) is None:
        return _guess(key, asset)
    name, version = parts.groups()
    with explained(f"reading {key}={asset}"):
        data = client.data.get(name, label="latest") if version == "latest" else client.data.get(name, version=version)
    if version == "latest":
        print(f"azure     {key}: the latest version of {name} is {data.version}")
    return DataInput(path=f"azureml:{name}:{data.version}", kind=str(data.type))
