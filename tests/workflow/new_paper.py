"""The paper of CONTRIBUTING.md, added to a copy of the project as the guide says."""

import shutil
from pathlib import Path
from typing import Protocol

import yaml

EXAMPLE = Path(__file__).with_name("powergrid")
MLFLOW_RUNS = """
import mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
experiment = client.get_experiment_by_name("smoke")
print(*(run.info.run_name for run in client.search_runs([experiment.experiment_id])), sep="\\n")
"""


class Project(Protocol):
    folder: Path

    def edit(self, file: str, old: str, new: str) -> None: ...


def add_paper(project: Project) -> None:
    """Its folder, its entry in the list of stages, its defaults, and a run that has it beside a board of its claims."""
    shutil.copytree(EXAMPLE, project.folder / "src/fewstep/methods/powergrid")
    stages = "src/fewstep/app/stages/__init__.py"
    after = "from fewstep.methods.multilid.stage import STAGE as DETECT\n"
    project.edit(stages, after, f"{after}from fewstep.methods.powergrid.stage import STAGE as POWERGRID\n")
    project.edit(stages, "        ALIGN,\n", "        ALIGN,\n        POWERGRID,\n")
    params = project.folder / "params.yaml"
    content = yaml.safe_load(params.read_text())
    content["defaults"]["powergrid"] = {"nfe": [], "power": 1.5}
    content["runs"] = {
        "smoke": {"powergrid": {"nfe": [3], "power": 2.0}},
        "papers": {"claims": {"runs": ["smoke"]}},
    }
    params.write_text(yaml.safe_dump(content))
