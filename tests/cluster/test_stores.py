"""Results in a remote of DVC, from which a second clone takes them, and in object storage, which is refused."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cluster.small import configure, environment_of, small_project
from workflow.test_workflow import Project, jobs_in, make

pytestmark = pytest.mark.timeout(1800)


def test_a_second_clone_takes_results_from_a_remote(tmp_path: Path) -> None:
    project = small_project(tmp_path / "first")
    configure(project, search={"nfe": []})
    project.succeed("snakemake", "--cores", "2")
    assert jobs_in(project.succeed("dvc", "repro")) == []
    project.succeed("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.commit("results")
    project.succeed("dvc", "push", "--quiet")
    shutil.rmtree(project.folder / ".dvc" / "cache")
    project.succeed("git", "clone", "--quiet", str(project.folder), str(tmp_path / "second"))
    second = Project(tmp_path / "second")
    second.succeed("dvc", "pull", "--quiet")
    make(second, "adopt")
    assert second.planned() == {"track": 1}
    weights = "results/smoke/train/model.safetensors"
    assert (second.folder / weights).read_bytes() == (project.folder / weights).read_bytes()


def test_results_in_object_storage_are_refused_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_storage_plugin_fs")
    project = small_project(tmp_path / "project")
    options = ("--default-storage-provider", "fs", "--default-storage-prefix", str(tmp_path / "store"))
    words = ["snakemake", "-n", *options]
    done = subprocess.run(
        words, cwd=project.folder, env=environment_of(project), capture_output=True, text=True
    )
    assert done.returncode != 0
    sentence = "results must stand in a folder that all jobs share, but --default-storage-provider was given"
    assert sentence in done.stdout + done.stderr
