"""What tests of several parts share: a bundle that needs no training and no torch."""

from __future__ import annotations

import pytest

import stain_net


@pytest.fixture(scope="session")
def stain_bundle(tmp_path_factory):
    """Folder of a viability bundle whose arithmetic is known; see stain_net."""
    return stain_net.write_bundle(tmp_path_factory.mktemp("stain") / "bundle")
