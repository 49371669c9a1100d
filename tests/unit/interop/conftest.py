"""Makes `tiny` importable, and saves each of its pipelines once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder of each kind of pipeline; tests that change one copy it."""
    from tiny import save

    folder = tmp_path_factory.mktemp("diffusers")
    return {kind: save(kind, folder / kind) for kind in ("ddpm", "ddim", "ldm", "dit")}
