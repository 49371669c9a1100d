"""The profiles speak of the stages that there are."""

from pathlib import Path

import pytest
import yaml

from fewstep.app.params import Settings
from fewstep.app.stages import STAGES

PROFILES = Path(__file__).parents[3] / "profiles"


@pytest.fixture
def slurm() -> dict[str, dict[str, object]]:
    profile: dict[str, dict[str, object]] = yaml.safe_load((PROFILES / "slurm" / "profile.yaml").read_text())
    return profile


def test_a_cluster_knows_memory_and_time_of_the_stages_that_there_are(
    slurm: dict[str, dict[str, object]],
) -> None:
    rules = {stage.name for stage in STAGES} | {f"{stage.name}_shard" for stage in STAGES if stage.over}
    assert slurm["set-resources"].keys() | slurm["set-threads"].keys() <= rules
    models = {stage.name for stage in STAGES if stage.makes in ("model", "autoencoder") and stage.gpu}
    assert models <= slurm["set-resources"].keys()


def test_jobs_that_take_all_cores_of_a_machine_say_how_many_on_a_cluster(
    slurm: dict[str, dict[str, object]],
) -> None:
    """Else they would take as many as the login node has."""
    greedy = {stage.name for stage in STAGES if stage.threads(Settings()) == 0}
    assert greedy and greedy <= slurm["set-threads"].keys()


def test_the_profile_of_a_cluster_is_whole(slurm: dict[str, dict[str, object]]) -> None:
    """It takes the place of the default one, whose choices it shares but for what is of one machine."""
    default = yaml.safe_load((PROFILES / "default" / "profile.yaml").read_text())
    assert {name: slurm.get(name) for name in default if name != "cores"} == {
        name: value for name, value in default.items() if name != "cores"
    }
