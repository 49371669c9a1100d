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
    "disturb": {"images": 0},
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
    content["runs"] = {"smoke": SMALL, "papers": {"claims": {"runs": ["smoke"]}}}
    params.write_text(yaml.safe_dump(content))


def test_a_new_paper_is_one_folder(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    add_paper(project)
    assert {path for path in changed_files(project) if "/powergrid/" not in path} == {
        "params.yaml",
        "src/fewstep/app/stages/__init__.py",
    }
    for claims in (project.folder / "src/fewstep/methods").glob("*/claims.yaml"):
        if claims.parent.name != "powergrid":
            claims.unlink()  # they are about runs that are not there
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

    board = "results/papers/report/index.html"
    assert project.planned(board, "state/papers/track/spec.json") == {"claims": 1, "report": 1, "track": 1}
    project.succeed("snakemake", "--quiet", "host", "reason", "--", board, "state/papers/track/spec.json")
    judged = read_json(project.folder / "results/papers/claims/claims.json")["papers"]
    assert [paper["folder"] for paper in judged] == ["powergrid"]
    [claim] = judged[0]["claims"]
    [measured] = claim["measurements"]
    assert measured["low"] <= measured["value"] <= measured["high"]
    assert "Times spaced by a power beat uniform ones." in (project.folder / board).read_text()
    metrics = read_json(project.folder / "results/papers/report/metrics.json")
    assert metrics["powergrid.ahead-of-uniform"] == claim["verdict"]
    tracked = json.loads((project.folder / "state/papers/track/tracked.json").read_text())
    assert tracked["runs"] == 2, "the board, and its claims"

    assert project.planned() == {}
    assert project.planned(board) == {}
    text = "src/fewstep/methods/powergrid/claims.yaml"
    project.edit(text, "criterion: {below: 1}", "criterion: {above: 1}")
    assert project.planned(board) == {"claims": 1, "report": 1}
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
    files = [path for path in sorted(EXAMPLE.rglob("*")) if path.suffix in (".py", ".j2", ".yaml")]
    assert quoted.keys() == {path.relative_to(EXAMPLE.parent).as_posix() for path in files}
    for path in files:
        assert quoted[path.relative_to(EXAMPLE.parent).as_posix()] == path.read_text(), path
