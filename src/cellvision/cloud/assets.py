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

    from cellvision.cloud.points import Point


@dataclass(frozen=True, kw_only=True)
class DataInput:
    """Address of a data asset, with the number of its version where it has one, and uri_folder or uri_file."""

    path: str
    kind: str


def find_inputs(points: Iterable[Point], client: MLClient | None) -> dict[str, DataInput]:
    """Every data asset of some points, by what the command line calls it; ``latest`` becomes a number, which is said.

    Args:
        points: of a sweep.
        client: of the workspace; None asks nobody: ``latest`` stays, and only a name tells a file from a folder.

    Raises:
        CloudError: an asset that does not exist, or no answer.
    """
    found: dict[str, DataInput] = {}
    for key, asset in ((key, asset) for point in points for key, asset in point.assets.items()):
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
