"""What a release is made of agrees: versions, the image's files, and what the workflow catalogue is told."""

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import fewstep

ROOT = Path(__file__).parents[2]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_versions_agree():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changed = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None and changed is not None
    assert project()["version"] == fewstep.__version__ == cited[1] == changed[1]


def test_the_image_is_built_of_files_that_are_there_from_the_lock():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"src", "zoo", "constraints.txt", "Snakefile"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), f"{source} is not sent"
    install = shlex.split(re.search(r"pip install (.*)$", text, re.MULTILINE)[1])
    assert install[install.index("-c") + 1] == "constraints.txt"
    extras = re.search(r"\[(.*)\]", install[-1])[1].split(",")
    assert set(extras) <= project()["optional-dependencies"].keys()


def test_what_the_lock_pins_fits_what_is_asked_for():
    requirements = pytest.importorskip("packaging.requirements")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = project()["optional-dependencies"]
    # that of clusters is installed where there is one
    asked = [
        *project()["dependencies"],
        *(text for name in extras.keys() - {"slurm"} for text in extras[name]),
    ]
    for text in asked:
        requirement = requirements.Requirement(text)
        if requirement.name != "fewstep":
            assert requirement.name in pins, f"{requirement.name} is not pinned"
            assert requirement.specifier.contains(pins[requirement.name]), text


def test_what_the_workflow_catalogue_asks_for():
    yaml = pytest.importorskip("yaml")
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    assert usage["software-stack-deployment"].keys() <= {"conda", "apptainer", "apptainer+conda", "report"}
    assert (ROOT / "config/README.md").is_file() and (ROOT / "workflow/Snakefile").is_file()
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme and "workflow" in readme
    assert list((ROOT / "workflow/rules").glob("*.smk"))
