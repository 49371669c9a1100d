"""Adding a paper is adding a folder, its entry in the list of stages and its defaults, and nothing else."""

import json
import re
import shutil
from pathlib import Path

import yaml
from workflow.test_workflow import ROOT, Project, new_project

from fewstep.files import read_json

EXAMPLE = Path(__file__).with_name("powergrid")
SMALL = {  # from data to report with known samplers alone
    "search": {"nfe": []},
    "align": {"nfe": []},
    "stepaware": {"nfe": []},
    "detect": {"nfe": []},
    "plans": {"nfe": [3], "presets": ["ddim"], "grids": ["uniform-lambda"]},
    "powergrid": {"nfe": [3], "power": 2.0},
}


def changed_files(project: Project) -> set[str]:
    return set(project.succeed("git", "ls-files", "--others", "--modified", "--exclude-standard").split())


def add_paper(project: Project) -> None:
    """What CONTRIBUTING.md says."""
    shutil.copytree(EXAMPLE, project.folder / "src/fewstep/methods/powergrid")
    stages = "src/fewstep/app/stages/__init__.py"
    after = "from fewstep.methods.multilid.stage import STAGE as DETECT\n"
    project.edit(stages, after, f"{after}from fewstep.methods.powergrid.stage import STAGE as POWERGRID\n")
    project.edit(stages, "        ALIGN,\n", "        ALIGN,\n        POWERGRID,\n")
    params = project.folder / "params.yaml"
    content = yaml.safe_load(params.read_text())
    content["defaults"]["powergrid"] = {"nfe": [], "power": 1.5}
    content["runs"]["smoke"] = SMALL
    params.write_text(yaml.safe_dump(content))


def test_a_new_paper_is_one_folder(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    add_paper(project)
    assert {path for path in changed_files(project) if "/powergrid/" not in path} == {
        "params.yaml",
        "src/fewstep/app/stages/__init__.py",
    }
    shown = project.succeed("fewstep", "powergrid", "--help")
    assert "exponent of the spacing; 1: uniform in time (default: 1.5)" in " ".join(
        shown.replace("│", " ").split()
    )
    wrong = project.command(
        "fewstep", "powergrid", "--model", "m", "--nfe", "3", "--out", "o", "--power", "0"
    )
    assert wrong.returncode == 2
    assert "--power must be greater than 0, got '0'" in wrong.stderr

    planned = project.planned()
    assert planned == {
        "prepare": 1, "train": 1, "extractor": 1, "stats": 1, "plans": 1, "powergrid": 1, "sample": 2, "evaluate": 2,
        "report": 1, "track": 1,
    }  # fmt: skip
    project.succeed("snakemake", "--quiet", "host", "reason")
    results = project.folder / "results/smoke"
    stamp = read_json(results / "powergrid/nfe3/spec.json")
    assert stamp["settings"]["powergrid"] == {"nfe": [3], "power": 2.0}
    assert stamp["roots"] == ["fewstep.methods.powergrid.stage.command"]

    board = (results / "report/leaderboard.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in board[1:] if line.startswith("powergrid")] == ["powergrid"]
    page = (results / "report/index.html").read_text()
    assert "Times spaced by a power" in page
    assert (results / "report/figures/powergrid/plans.svg").exists()
    assert json.loads((project.folder / "state/smoke/track/tracked.json").read_text())["runs"] == 5, (
        "the run, its training, the paper, and two samplers"
    )
    runs = project.succeed("python", "-c", MLFLOW_RUNS).splitlines()
    assert "powergrid nfe3" in runs
    assert any(name.startswith("powergrid power 2") for name in runs)

    assert project.planned() == {}
    command = "src/fewstep/methods/powergrid/__init__.py"
    project.edit(command, "max(schedule.t_min, ", "max(2 * schedule.t_min, ")
    assert project.planned() == {"powergrid": 1, "sample": 1, "evaluate": 1, "report": 1, "track": 1}


MLFLOW_RUNS = """
import mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
experiment = client.get_experiment_by_name("smoke")
print(*(run.info.run_name for run in client.search_runs([experiment.experiment_id])), sep="\\n")
"""


def test_the_example_of_the_guide_is_the_one_that_is_tested() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    quoted = dict(
        re.findall(r"^`src/fewstep/methods/(powergrid/[^`]+)`\n\n```[a-z0-9]*\n(.*?)```$", guide, re.M | re.S)
    )
    files = [path for path in sorted(EXAMPLE.rglob("*")) if path.suffix in (".py", ".j2")]
    assert quoted.keys() == {path.relative_to(EXAMPLE.parent).as_posix() for path in files}
    for path in files:
        assert quoted[path.relative_to(EXAMPLE.parent).as_posix()] == path.read_text(), path
