"""A run of few jobs."""

import os
from pathlib import Path
from typing import Any

import yaml
from workflow.test_workflow import Project, new_project


def small_project(folder: Path) -> Project:
    """Training, a search, plans of two numbers of calls, and what follows from these."""
    project = new_project(folder)
    settings = project.folder / "params.yaml"
    content = yaml.safe_load(settings.read_text())
    for name in ("align", "stepaware", "detect", "compose", "disturb"):
        content["defaults"].pop(name)
    settings.write_text(yaml.safe_dump(content))
    project.commit("fewer jobs")
    return project


def environment_of(project: Project) -> dict[str, str]:
    """What its commands read, with what this process may import beside what is installed."""
    paths = (str(project.folder / "src"), os.environ.get("PYTHONPATH", ""))
    return {**project.environment, "PYTHONPATH": os.pathsep.join(paths)}


def configure(project: Project, **sections: dict[str, Any]) -> None:
    """Change settings of the run."""
    settings = project.folder / "params.yaml"
    content = yaml.safe_load(settings.read_text())
    content["runs"]["smoke"] = sections
    settings.write_text(yaml.safe_dump(content))
