"""What a user may do with a finished run: nothing, a change, a mistake, two at once, a kill.

One run of the smallest size is made, and copied by each test that goes on from it.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from workflow.new_paper import EXAMPLE, MLFLOW_RUNS, add_paper

from fewstep.app.params import load_params
from fewstep.app.stages import STAGES
from fewstep.files import read_json
from fewstep.locks import Lock, take

ROOT = Path(__file__).parents[2]
CHECKED_OUT = ("Snakefile", "workflow", "profiles", "dvc.yaml", ".dvcignore", ".gitignore")


@dataclass(frozen=True)
class Project:
    """A copy of the workflow and the code in a folder of its own."""

    folder: Path

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the folder, with the code of the folder."""
        return subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def succeed(self, *words: str) -> str:
        """Run a command that must succeed; both of its outputs."""
        done = self.command(*words)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc" / "tmp" / "site"),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **{f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        dropped = ("MLFLOW_TRACKING_URI", "PYTEST_CURRENT_TEST")
        return {**{name: value for name, value in os.environ.items() if name not in dropped}, **own}

    def planned(self, *words: str) -> dict[str, int]:
        """The jobs that `snakemake` would run, by rule."""
        text = self.succeed("snakemake", "-n", "--quiet", "host", "reason", "--", *words)
        if "Nothing to be done" in text:
            return {}
        table = text[text.index("Job stats:") :]
        rows = re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)
        return {rule: int(n) for rule, n in rows if rule not in ("total", "all")}

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace one passage of a file."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file}: {old!r} must occur once"
        path.write_text(text.replace(old, new))

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.succeed("git", "add", "--all")
        self.succeed("git", "commit", "--quiet", "--allow-empty", "--message", message)


def jobs_in(output: str) -> list[str]:
    """The rules of the jobs that Snakemake says it has finished."""
    rules = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", output)
    return [rule for rule in rules if rule != "all"]


def new_project(folder: Path) -> Project:
    """The workflow as it is checked out, with the smallest settings."""
    folder.mkdir(parents=True)
    for name in CHECKED_OUT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    no_byte_code = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "fewstep", folder / "src" / "fewstep", ignore=no_byte_code)
    shutil.copy2(Path(__file__).with_name("params.yaml"), folder / "params.yaml")
    project = Project(folder)
    project.succeed("git", "init", "--quiet", "--initial-branch", "main")
    project.succeed("dvc", "init", "--quiet")
    shutil.copy2(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    project.commit("start")
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose run Snakemake has finished and DVC has recorded; copy it before changing it."""
    project = new_project(tmp_path_factory.mktemp("workflow") / "finished")
    output = project.succeed("snakemake", "--quiet", "host", "reason")
    assert len(jobs_in(output)) == sum(ALL.values())
    recorded = project.succeed("dvc", "repro")
    assert jobs_in(recorded) == [], "DVC records what Snakemake has made, and runs nothing"
    project.commit("first results")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, to be changed at will."""
    folder = tmp_path / "project"
    shutil.copytree(finished.folder, folder, symlinks=True)  # keeps modification times
    return Project(folder)


ALL = {
    "prepare": 1,
    "extractor": 1,
    "train": 1,
    "stats": 1,
    "unfitted": 1,
    "plans": 2,
    "teacher": 1,
    "search": 1,
    "stepaware": 1,
    "align": 2,
    "compose": 1,
    "sample": 6,
    "evaluate": 6,
    "detect": 1,
    "disturb": 1,
    "report": 1,
    "track": 1,
}
END = {"report": 1, "track": 1}


def only(*rules: str, **numbers: int) -> dict[str, int]:
    return {rule: ALL[rule] for rule in rules} | numbers


AFTER_MEASURING = ("evaluate", "report", "track")
AFTER_SAMPLE = ("detect", *AFTER_MEASURING)
# the plans of stepaware, and of align for 3 and 4 calls, of which those for 4 start from a known sampler
AFTER_STEPAWARE = {"align": 1, "compose": 1, "sample": 2, "evaluate": 2, **END}
AFTER_SEARCH = {**AFTER_STEPAWARE, "stepaware": 1, "sample": 3, "evaluate": 3, "detect": 1}
AFTER_STATS = {
    **only("search", "stepaware", "align", "compose", "detect", "disturb", "evaluate"),
    "sample": 4,
    **END,
}
AFTER_TRAIN = only("plans", "sample", "teacher", *(rule for rule in AFTER_STATS if rule != "disturb"))


def test_a_finished_run_has_its_report_and_its_records(finished: Project) -> None:
    results = finished.folder / "results" / "smoke"
    for name in ("index.html", "metrics.json", "leaderboard.csv", "spec.json"):
        assert (results / "report" / name).stat().st_size > 0
    certificates = [p for p in sorted((results / "evaluate").rglob("*.json")) if p.name != "spec.json"]
    assert len([path for path in certificates if path.parent.parent.name == "plans"]) == 4
    tracked = json.loads((finished.folder / "state" / "smoke" / "track" / "tracked.json").read_text())
    subjects = [read_json(path)["subject"]["plan"] for path in certificates]
    samplers = {(plan["sampler"], plan["grid"]) for plan in subjects}
    assert {"ddim", "dpmpp-2m", "searched", "searched+widths"} <= {sampler for sampler, _ in samplers}
    assert tracked["runs"] == 6 + len(samplers), (
        "the run, its training, search, comparison, detection and disturbances, and one for each sampler"
    )
    assert (results / "search" / "nfe3" / "searched.nfe3.json").exists()
    assert (finished.folder / "mlflow.db").exists()


def test_nothing_is_done_twice(project: Project) -> None:
    assert project.planned() == {}
    assert "didn't change, skipping" in project.succeed("dvc", "repro")
    assert "Nothing to be done" in project.succeed("snakemake")
    assert "up to date" in project.succeed("dvc", "status")


CHANGES = [  # a change of one setting -> exactly what depends on it
    ({"prepare": {"test_fraction": 0.3}}, ALL),
    ({"model": {"channels": 16}}, {**AFTER_TRAIN, "train": 1}),
    ({"train": {"steps": 21}}, {**AFTER_TRAIN, "train": 1}),
    ({"extractor": {"steps": 21}}, {**AFTER_STATS, "extractor": 1, "stats": 1}),
    ({"extractor": {"name": "effnet-lite0-p320"}}, {**AFTER_STATS, "stats": 1, "unfitted": 1}),
    ({"stats": {"split": "test"}}, {**AFTER_STATS, "stats": 1, "unfitted": 1}),
    (
        {"plans": {"grids": ["karras"]}},
        {"plans": 2, "sample": 3, "evaluate": 3, "detect": 1, "align": 1, "compose": 1, **END},
    ),
    ({"plans": {"nfe": [3]}, "align": {"nfe": [3]}}, {"compose": 1, **END}),
    ({"plans": {"nfe": [3, 4, 5]}}, {"plans": 1, "sample": 1, "evaluate": 1, **END}),
    ({"search": {"trials": 14}}, {**AFTER_SEARCH, "search": 1}),
    ({"search": {"noises": 17}}, {**AFTER_SEARCH, "search": 1, "teacher": 1}),
    (
        {"search": {"nfe": []}},
        {"stepaware": 1, "align": 1, "compose": 1, "sample": 2, "evaluate": 2, "detect": 1, **END},
    ),
    ({"stepaware": {"noises": 17}}, {**AFTER_STEPAWARE, "stepaware": 1}),
    ({"align": {"noises": 17}}, {"align": 2, "compose": 1, "sample": 2, "evaluate": 2, **END}),
    ({"compose": {"rounds": 2}}, {"compose": 1, **END}),
    ({"stepaware": {"nfe": []}, "align": {"nfe": []}}, END),
    ({"sample": {"n": 41}}, only("sample", *AFTER_SAMPLE)),
    ({"evaluate": {"resamples": 12}}, only(*AFTER_MEASURING)),
    ({"detect": {"folds": 3}}, {"detect": 1, **END}),
    ({"track": {"uri": "sqlite:///other.db"}}, only("track")),
    ({"prepare": {"workers": 2}, "train": {"checkpoint_seconds": 9.0}, "sample": {"batch_size": 9}}, {}),
    ({"sample": {"shards": 3}, "evaluate": {"shards": 2}}, {}),
    ({"unfitted": {"steps": 21}}, {**only(*AFTER_MEASURING), "unfitted": 1}),
]


@pytest.mark.parametrize(
    "changes", [CHANGES[::4], pytest.param(CHANGES, marks=pytest.mark.slow)], ids=["every fourth", "all"]
)
def test_a_changed_setting_runs_what_depends_on_it(project: Project, changes: list[Any]) -> None:
    params = project.folder / "params.yaml"
    before = params.read_text()
    for change, expected in changes:
        content = yaml.safe_load(before)
        content["runs"]["smoke"] = change
        params.write_text(yaml.safe_dump(content))
        assert project.planned() == expected, change
    params.write_text(before)
    assert project.planned() == {}, "a change that is taken back leaves nothing to do"


def test_changed_code_runs_what_uses_it_and_a_comment_runs_nothing(project: Project) -> None:
    package = project.folder / "src" / "fewstep"
    loop = package / "train" / "loop.py"
    loop.write_text(loop.read_text() + "\n# a remark\n")
    assert project.planned() == {}
    kid = package / "metrics" / "kid.py"
    before = kid.read_text()
    kid.write_text(before + "\nANSWER = 42\n")
    assert project.planned().keys() >= {"evaluate", "report", "track"}
    assert not project.planned().keys() & {"prepare", "train", "extractor", "plans"}
    kid.write_text(before)
    panel = package / "methods" / "s3" / "stage" / "panel.html.j2"
    styled = panel.read_text()
    panel.write_text(styled + "<!-- -->")
    assert project.planned() == END, "another look of a panel is another report alone"
    panel.write_text(styled)
    loop.write_text(loop.read_text() + "\nANSWER = 42\n")
    assert project.planned() == {
        **AFTER_TRAIN,
        **only("train", "extractor", "stats", "unfitted", "disturb"),
    }


def test_a_lost_file_is_made_again(project: Project) -> None:
    results = project.folder / "results" / "smoke"
    (results / "report" / "leaderboard.csv").unlink()
    assert project.planned() == END
    (results / "evaluate/plans/nfe3/ddim.uniform-lambda.to-zero.nfe3.json").unlink()
    assert project.planned() == {"evaluate": 1, **END}
    (results / "train" / "model.safetensors").unlink()
    assert project.planned() == {**AFTER_TRAIN, "train": 1}


@pytest.mark.slow
def test_jobs_share_the_images_and_measure_the_same(project: Project) -> None:
    results = project.folder / "results" / "smoke"
    certificates = results / "evaluate/plans/nfe3"
    before = {path.name: read_json(path)["results"] for path in certificates.glob("[!s]*.json")}
    for made in ("sample", "evaluate"):
        shutil.rmtree(results / made / "plans/nfe3")
    project.edit("params.yaml", "sample: {n: 40}", "sample: {n: 40, shards: 2}")
    project.edit("params.yaml", "evaluate: {resamples: 10}", "evaluate: {resamples: 10, shards: 2}")
    target = "results/smoke/evaluate/plans/nfe3/spec.json"
    planned = project.planned(target)
    assert planned["sample_shard"] == planned["evaluate_shard"] == 2
    assert planned["sample"] == planned["evaluate"] == 1
    project.succeed("snakemake", target)
    after = {path.name: read_json(path)["results"] for path in certificates.glob("[!s]*.json")}
    assert after == before
    left = [path for path in results.rglob(".*") if path.name.endswith((".parts", ".features"))]
    assert left == []
    assert list((project.folder / "state/smoke/shards").rglob("*of2")) == []


@pytest.mark.slow
def test_dvc_sees_what_snakemake_sees(project: Project) -> None:
    project.edit("params.yaml", "evaluate: {resamples: 10}", "evaluate: {resamples: 12}")
    jobs = jobs_in(project.succeed("dvc", "repro"))
    assert {rule: jobs.count(rule) for rule in jobs} == only(*AFTER_MEASURING)
    assert project.planned() == {}
    project.commit("twelve")

    project.succeed("git", "checkout", "--quiet", "HEAD~1")
    assert project.planned() == only(*AFTER_MEASURING), "old settings over new results: nothing stale is used"
    project.succeed("dvc", "checkout", "--quiet")
    make(project, "adopt")
    assert project.planned().keys() <= {"track"}
    assert "up to date" in project.succeed("dvc", "status")

    project.succeed("git", "checkout", "--quiet", "main", "--", "params.yaml")
    assert project.planned() == only(*AFTER_MEASURING), (
        "the last jobs had these settings, but not these results"
    )
    refused = project.command("dvc", "status", "--quiet")
    assert refused.returncode != 0, "adopt refuses settings that dvc.lock does not have"
    project.succeed("snakemake", "--cores", "1", "--touch", "--quiet", "all")
    assert project.planned() == only(*AFTER_MEASURING), "a wrong touch does no harm: the keys differ"

    project.succeed("git", "checkout", "--quiet", "main")
    project.succeed("dvc", "checkout", "--quiet")
    make(project, "adopt")
    assert project.planned().keys() <= {"track"}


@pytest.mark.slow
def test_dvc_takes_a_run_that_detects_nothing(project: Project) -> None:
    project.edit("params.yaml", "detect: {nfe: [3], ", "detect: {nfe: [], ")
    assert sorted(jobs_in(project.succeed("dvc", "repro"))) == ["report", "track"]
    assert "up to date" in project.succeed("dvc", "status")


def make(project: Project, *words: str) -> str:
    """A target of the Makefile, in the present environment instead of one of its own."""
    shutil.copy2(ROOT / "Makefile", project.folder)
    (project.folder / "pyproject.toml").touch()
    stamp = project.folder / ".venv" / ".installed"
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()
    return project.succeed("make", *words)


def test_a_clone_takes_results_from_dvc_and_sees_changes(project: Project, tmp_path: Path) -> None:
    project.succeed("git", "clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.succeed("dvc", "config", "--local", "cache.dir", str(project.folder / ".dvc" / "cache"))
    clone.succeed("dvc", "checkout", "--quiet")
    clone.edit("params.yaml", "evaluate: {resamples: 10}", "evaluate: {resamples: 12}")
    assert set(AFTER_MEASURING) <= clone.planned().keys(), (
        "without metadata of its own Snakemake still sees it"
    )
    clone.succeed("git", "checkout", "--quiet", "params.yaml")
    make(clone, "adopt")
    assert clone.planned() == only("track")


def test_every_run_of_the_repository_can_be_planned(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    shutil.copy2(ROOT / "params.yaml", project.folder)
    (project.folder / "zoo").symlink_to(ROOT / "zoo")
    expected: dict[str, int] = {}
    targets = []
    for run, settings in load_params(ROOT / "params.yaml").runs.items():
        targets += [f"results/{run}/report/index.html", f"state/{run}/track/spec.json"]
        for result in STAGES.results(settings):
            name = result.stage.name
            expected[name] = expected.get(name, 0) + 1
            if result.stage.over is not None and (shards := getattr(settings, name).shards) > 1:
                expected[f"{name}_shard"] = expected.get(f"{name}_shard", 0) + shards
    assert project.planned(*targets) == expected


def test_a_run_of_the_zoo_aligns_without_a_dataset(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    shutil.copy2(ROOT / "params.yaml", project.folder)
    (project.folder / "zoo").symlink_to(ROOT / "zoo")
    search = "    search: {nfe: [4], trials: 16"
    project.edit("params.yaml", search, f"    align: {{nfe: [4], objectives: [trajectory]}}\n{search}")
    planned = project.planned("results/cifar10-zoo/align/nfe4/spec.json")
    assert planned == dict.fromkeys(("zoo", "teacher", "search", "align"), 1)


def test_what_a_run_does_not_have_is_refused_in_one_sentence(finished: Project) -> None:
    done = finished.command("snakemake", "-n", "--", "results/smoke/search/nfe7/spec.json")
    assert done.returncode != 0
    sentence = "run smoke must have what is asked for, but its settings do not ask for search/nfe7"
    assert sentence in done.stdout + done.stderr


def test_lint_and_format(finished: Project) -> None:
    Project(ROOT).succeed("snakefmt", "--check", "Snakefile", "workflow")
    finished.succeed("snakemake", "--lint")


@pytest.mark.slow
def test_the_figures_of_a_run_are_taken_for_the_pages(project: Project) -> None:
    project.succeed("snakemake", "--quiet", "host", "reason", "--", "docs/gallery/smoke")
    report = project.folder / "results/smoke/report/figures"
    taken = {
        path.relative_to(project.folder / "docs/gallery/smoke")
        for path in project.folder.glob("docs/**/*.png")
    }
    shown = {path for path in report.glob("*/*.png") if not path.name.startswith("curves_nfe")}
    assert taken == {path.relative_to(report) for path in {*shown, report / "fd_vs_nfe.png"}}


@pytest.mark.slow
def test_the_entry_of_the_workflow_catalogue_is_the_same_workflow(finished: Project) -> None:
    jobs = finished.succeed("snakemake", "-n", "--forceall", "--quiet", "host", "-s", "workflow/Snakefile")
    assert f"total {sum(ALL.values()) + 1}" in re.sub(" +", " ", jobs)


def test_a_second_run_is_refused_in_one_sentence(project: Project) -> None:
    project.edit("params.yaml", "evaluate: {resamples: 10}", "evaluate: {resamples: 12}")
    spec = project.folder / "state/smoke/spec/evaluate/plans/nfe3.json"
    before = spec.read_bytes()
    lock = take(project.folder / "state" / "run.lock")
    assert isinstance(lock, Lock)
    (project.folder / "results" / "smoke" / "report" / "index.html").unlink()
    refused = project.command("snakemake", "--quiet", "host", "reason")
    assert spec.read_bytes() == before, "specs that queued jobs will read stay as they are"
    lock.release()
    assert refused.returncode != 0
    sentence = (
        f"another workflow must not be running in this folder, but process {os.getpid()} on {os.uname().nodename} is; "
        "wait for it or stop it"
    )
    assert sentence in refused.stdout + refused.stderr
    assert jobs_in(refused.stdout + refused.stderr) == []
    assert set(AFTER_MEASURING) <= project.planned().keys()


FAKE_JOB = """#!{python}
import os, sys, time
from pathlib import Path
from fewstep.pipeline.devices import chosen_device

chosen_device("auto")
Path("used-by-" + sys.argv[1]).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
deadline = time.monotonic() + 60
while len(list(Path().glob("used-by-*"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(1)
"""


def test_jobs_of_one_machine_have_a_gpu_each(project: Project, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    listed = "".join(f"echo 'GPU {i}: NVIDIA Made Up (UUID: GPU-{i})'\n" for i in range(2))
    for name, text in (
        ("nvidia-smi", f"#!/bin/sh\n{listed}"),
        ("fewstep", FAKE_JOB.format(python=sys.executable)),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    targets = [f"results/smoke/{stage}/spec.json" for stage in ("teacher", "extractor")]
    for target in targets:
        shutil.rmtree((project.folder / target).parent)
    environment = project.environment
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    subprocess.run(
        ["snakemake", "--cores", "2", "--", *targets],
        cwd=project.folder,
        env=environment,
        capture_output=True,
    )
    used = {path.name: path.read_text() for path in project.folder.glob("used-by-*")}
    assert used.keys() == {"used-by-teacher", "used-by-extractor"}
    assert set(used.values()) == {"0", "1"}


def test_mistakes_in_the_settings_stop_before_any_job(project: Project) -> None:
    params = project.folder / "params.yaml"
    content = yaml.safe_load(params.read_text())
    content["runs"]["smoke"] = {"train": {"stpes": 3}, "sample": {"n": 1}}
    params.write_text(yaml.safe_dump(content))
    done = project.command("snakemake", "-n")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "params.yaml: runs.smoke.train.stpes: unknown field; allowed: steps," in output
    assert "params.yaml: runs.smoke.sample.n: must be greater than or equal to 10, got 1" in output
    assert "Traceback" not in output


def test_settings_on_the_command_line_and_unknown_runs_are_refused(finished: Project) -> None:
    done = finished.command("snakemake", "-n", "--config", "steps=3")
    assert done.returncode != 0
    assert "settings must stand in params.yaml, where DVC sees them" in done.stdout + done.stderr
    done = finished.command("snakemake", "-n", "--", "results/mnist/report/index.html")
    assert done.returncode != 0
    assert "run must be one of smoke (params.yaml: runs), got 'mnist'" in done.stdout + done.stderr


def test_leftovers_of_removed_settings_are_pruned(project: Project) -> None:
    left = project.folder / "results/smoke/evaluate/plans/nfe4"
    project.edit("params.yaml", "nfe: [3, 4]", "nfe: [3]")
    project.edit("params.yaml", "nfe: [4, 3]", "nfe: [3]")
    assert left.exists()
    make(project, "prune", "RUN=smoke")
    assert not left.exists()
    kept = project.folder / "results/smoke/evaluate/plans/nfe3"
    assert len(list(kept.glob("*.json"))) == 3
    assert project.planned() == {"compose": 1, **END}


def test_a_new_paper_is_one_folder(project: Project) -> None:
    add_paper(project)
    changed = project.succeed("git", "ls-files", "--others", "--modified", "--exclude-standard").split()
    assert {path for path in changed if "/powergrid/" not in path} == {
        "params.yaml",
        "src/fewstep/app/stages/__init__.py",
    }
    for claims in (project.folder / "src/fewstep/methods").glob("*/claims.yaml"):
        if claims.parent.name != "powergrid":
            claims.unlink()  # they are about runs that are not there
    shown = project.succeed("fewstep", "powergrid", "--help").replace("│", " ")
    assert "exponent of the spacing; 1: uniform in time (default: 1.5)" in " ".join(shown.split())
    wrong = project.command(
        "fewstep", "powergrid", "--model", "m", "--nfe", "3", "--out", "o", "--power", "0"
    )
    assert wrong.returncode == 2
    assert "--power must be greater than 0, got '0'" in wrong.stderr

    smoke = ("results/smoke/report/index.html", "state/smoke/track/spec.json")
    board = ("results/papers/report/index.html", "state/papers/track/spec.json")
    new = {"powergrid": 1, "sample": 1, "evaluate": 1, "compose": 1, **END}
    assert project.planned(*smoke) == new, "nothing is made again but what compares all plans"
    project.succeed("snakemake", "--quiet", "host", "reason", "--", *smoke, *board)
    results = project.folder / "results/smoke"
    stamp = read_json(results / "powergrid/nfe3/spec.json")
    assert stamp["settings"]["powergrid"] == {"nfe": [3], "power": 2.0}
    assert stamp["roots"] == ["fewstep.methods.powergrid.stage.command"]
    rows = (results / "report/leaderboard.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows if row.startswith("powergrid")] == ["powergrid"]
    assert "Times spaced by a power" in (results / "report/index.html").read_text()
    assert (results / "report/figures/powergrid/plans.svg").exists()
    runs = project.succeed("python", "-c", MLFLOW_RUNS).splitlines()
    assert "powergrid nfe3" in runs
    assert any(name.startswith("powergrid power 2") for name in runs)

    judged = read_json(project.folder / "results/papers/claims/claims.json")["papers"]
    assert [paper["folder"] for paper in judged] == ["powergrid"]
    [claim] = judged[0]["claims"]
    [measured] = claim["measurements"]
    assert measured["low"] <= measured["value"] <= measured["high"]
    assert "Times spaced by a power beat uniform ones." in (project.folder / board[0]).read_text()
    metrics = read_json(project.folder / "results/papers/report/metrics.json")
    assert metrics["powergrid.ahead-of-uniform"] == claim["verdict"]
    tracked = json.loads((project.folder / "state/papers/track/tracked.json").read_text())
    assert tracked["runs"] == 2, "the board, and its claims"

    assert project.planned(*smoke, *board) == {}
    folder = "src/fewstep/methods/powergrid"
    project.edit(f"{folder}/claims.yaml", "criterion: {below: 1}", "criterion: {above: 1}")
    assert project.planned(board[0]) == {"claims": 1, "report": 1}
    project.edit(f"{folder}/__init__.py", "max(schedule.t_min, ", "max(2 * schedule.t_min, ")
    assert project.planned(*smoke) == new


def test_the_example_of_the_guide_is_the_one_that_is_tested() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    quoted = dict(
        re.findall(r"^`src/fewstep/methods/(powergrid/[^`]+)`\n\n```[a-z0-9]*\n(.*?)```$", guide, re.M | re.S)
    )
    files = [path for path in sorted(EXAMPLE.rglob("*")) if path.suffix in (".py", ".j2", ".yaml")]
    assert quoted.keys() == {path.relative_to(EXAMPLE.parent).as_posix() for path in files}
    for path in files:
        assert quoted[path.relative_to(EXAMPLE.parent).as_posix()] == path.read_text(), path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_weights(finished: Project, tmp_path: Path) -> None:
    target = "results/smoke/train/spec.json"
    command = ("snakemake", "--cores", "2", "--quiet", "host", "reason", "--", target)
    made: dict[str, str] = {}
    for name in ("undisturbed", "killed"):
        project = Project(tmp_path / name)
        shutil.copytree(finished.folder, project.folder, symlinks=True)
        project.edit("params.yaml", "train: {steps: 20,", "train: {steps: 300, checkpoint_seconds: 0.5,")
        if name == "killed":
            kill_in_training(project, command)
            assert not (project.folder / target).exists(), "the training was over before the kill"
        project.succeed(*command)
        made[name] = sha256(project.folder / "results" / "smoke" / "train" / "model.safetensors")
    assert made["killed"] == made["undisturbed"]


def kill_in_training(project: Project, command: tuple[str, ...]) -> None:
    """Start a command, and kill it and its jobs when the second checkpoint is there."""
    checkpoints = project.folder / "state" / "smoke" / "kept" / "train"
    before = set(checkpoints.glob("*/*"))
    started = subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(set(checkpoints.glob("*/*")) - before) > 1, seconds=120)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
