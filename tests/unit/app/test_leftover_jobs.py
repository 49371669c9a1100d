"""What a killed workflow has left on a cluster, whose commands are made up here: a queue in a file."""

import os
from pathlib import Path

import pytest

from fewstep.app import leftover_jobs
from fewstep.app.keys import sync_specs
from fewstep.app.params import Params, Settings

SQUEUE = "#!/bin/sh\ncat {queue}; echo looked >> {queue}.looks; : > {queue}\n"
SCANCEL = '#!/bin/sh\necho "$@" >> {queue}.cancelled\n'
SECTIONS = {"plans": {"nfe": [3]}, "search": {"nfe": [5]}, "align": {"nfe": [3]}}


def params(**sections: object) -> Params:
    return Params(dvc_runs=[], runs={"digits": Settings.model_validate(SECTIONS | sections)})


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the queue, whose jobs have all ended at the second look."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(leftover_jobs, "POLL", 0.01)
    tools, file = tmp_path / "bin", tmp_path / "queue"
    tools.mkdir()
    for name, text in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (tools / name).write_text(text.format(queue=file))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    sync_specs(params())
    return file


def settled(queue: Path, *jobs: tuple[str, str], given: Params) -> tuple[list[str], set[str]]:
    """What is said, and the jobs that are cancelled, of a queue of ids and comments."""
    here = queue.parent
    queue.write_text("".join(f"{job}|{comment}|{here}\n" for job, comment in jobs))
    said: list[str] = []
    leftover_jobs.settle(given, said.append)
    cancelled = Path(f"{queue}.cancelled")
    return said, set(cancelled.read_text().split()) if cancelled.exists() else set()


@pytest.mark.parametrize(
    ("comment", "places"),
    [
        ("rule_train_wildcards_digits", "digits/train"),
        ("rule_search_wildcards_digits_5", "digits/search/nfe5"),
        ("rule_report_wildcards_digits", "digits/report"),
        ("rule_evaluate_wildcards_digits_search_nfe5", "digits/evaluate/search/nfe5"),
        ("rule_sample_shard_wildcards_digits_plans_nfe3_2_4", "digits/sample/plans/nfe3"),
        (
            "rule_digits-plans-nfe3_evaluate_plans_sample",
            "digits/evaluate/plans/nfe3, digits/plans/nfe3, digits/sample/plans/nfe3",
        ),
        ("rule_digits-align-nfe3_sample", "digits/sample/align/nfe3"),
    ],
)
def test_a_job_whose_result_is_wanted_is_waited_for(queue: Path, comment: str, places: str) -> None:
    given = params(sample={"shards": 4})
    said, cancelled = settled(queue, ("17", comment), given=given)
    assert not cancelled
    assert len(Path(f"{queue}.looks").read_text().split()) == 2
    (sentence,) = said
    assert sentence.startswith(f"waiting for the jobs 17 of an earlier workflow, which make {places};")


def test_jobs_that_would_make_something_else_are_cancelled(queue: Path) -> None:
    jobs = [
        ("1", "rule_train_wildcards_digits"),
        ("2", "rule_digits-plans-nfe3_evaluate_plans_sample"),
        ("3", "rule_search_wildcards_digits_7"),
        ("4", "rule_of_an_earlier_version_wildcards_digits"),
    ]
    said, cancelled = settled(queue, *jobs, given=params(train={"steps": 7}))
    assert cancelled == {"1", "2", "3", "4"}
    assert said == ["cancelled the jobs 1, 2, 3, 4 of an earlier workflow, whose results are not wanted so"]


def test_jobs_of_other_folders_and_the_one_that_snakemake_runs_in_are_left_alone(queue: Path) -> None:
    own = f"2|(null)|{queue.parent}\n"
    queue.write_text(f"1|rule_train_wildcards_digits|/somewhere/else\n{own}")
    said: list[str] = []
    leftover_jobs.settle(params(train={"steps": 7}), said.append)
    assert said == [] and not Path(f"{queue}.cancelled").exists()


def test_a_machine_without_slurm_has_none(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.write_text(f"1|rule_train_wildcards_digits|{tmp_path}\n")
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    leftover_jobs.settle(params(), said.append)
    assert said == []
