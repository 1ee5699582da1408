"""The hub of all tests is one on loopback, and its cache a folder of their own: nothing asks the network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.hub.loopback_hub import LoopbackHub

# The client reads these when it is imported, which test modules do before any fixture runs.
HUB = LoopbackHub()
HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ |= {
    "HF_ENDPOINT": HUB.endpoint,
    "HF_HOME": HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE"):
    os.environ.pop(name, None)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty hub, which nobody is logged in to."""
    HUB.reset()
    yield HUB
    HUB.reset()


@pytest.fixture
def login(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """Logged in, with a token that may write."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub.token
