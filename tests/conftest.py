"""Fixtures of the whole suite."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

# Shapes in signatures of these modules are checked at every call; the hook must stand before they are imported. Each
# of their functions gets slower, so modules of scalars that are called for every step of every plan are not among them.
SHAPED = [
    "fewstep.diffusion.grids",
    "fewstep.diffusion.mixture",
    "fewstep.diffusion.prediction",
    "fewstep.sampling.sample",
    "fewstep.metrics",
]
if all(importlib.util.find_spec(name) for name in ("jaxtyping", "beartype")):  # not on a bare GPU machine
    import jaxtyping

    jaxtyping.install_import_hook(SHAPED, "checked.checked")

from fewstep import process  # noqa: E402

ROOT = Path(__file__).parents[1]

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    process.set_up()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands that tests start, as above


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one of them at the end."""
    longest = ("workflow", "e2e")
    parts = {item: item.path.relative_to(ROOT / "tests").parts[0] for item in items}
    items.sort(key=lambda item: longest.index(parts[item]) if parts[item] in longest else len(longest))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout, which only some machines have."""
    folder = Path(os.environ.get("FEWSTEP_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; FEWSTEP_SHARED_DATA names another place")
    return folder
