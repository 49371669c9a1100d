"""Tests on real engines, which `make test-cluster` runs; where a machine refuses one they are skipped, and say why."""

import os
from collections.abc import Iterator

import pytest
from cluster import engines

if "FEWSTEP_TEST_CLUSTER" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[engines.Slurm]:
    """A SLURM cluster of two nodes."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    try:
        with engines.slurm(tmp_path_factory.mktemp("slurm") / "top") as running:
            yield running
    except engines.Missing as reason:
        pytest.skip(f"no SLURM cluster here: {reason}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[engines.Postgres]:
    """A server of PostgreSQL."""
    pytest.importorskip("psycopg2")
    folder = tmp_path_factory.mktemp("postgres")
    for above in (folder, *folder.parents[:2]):  # pytest's, which nobody else may enter
        above.chmod(0o755)
    try:
        with engines.postgres(folder / "server") as running:
            yield running
    except engines.Missing as reason:
        pytest.skip(f"no PostgreSQL here: {reason}")
