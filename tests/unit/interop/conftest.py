"""Makes `tiny` and `oracles` importable, and saves each of the tiny pipelines once."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The folder of each kind of pipeline; tests that change one copy it."""
    from tiny import save

    folder = tmp_path_factory.mktemp("diffusers")
    return {kind: save(kind, folder / kind) for kind in ("ddpm", "ddim", "ldm", "dit")}


@pytest.fixture(scope="session")
def text_saved(tmp_path_factory):
    """The folder of two text-to-image pipelines, with a file of their calls beside each."""
    import json
    import warnings

    from tiny_text import CALLS, pipeline

    folder = tmp_path_factory.mktemp("text")
    for kind in ("sd15", "flux"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline(kind).save_pretrained(folder / kind)
        (folder / f"{kind}.yaml").write_text(json.dumps(CALLS[kind]))
    return {kind: folder / kind for kind in ("sd15", "flux")}
