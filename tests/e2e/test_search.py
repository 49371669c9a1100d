"""`fewstep teacher` and `search` as a user types them: what they leave, after a break, and the mistakes."""

import json
import os
import shutil
import signal
import subprocess
import time

import optuna
import pandas as pd
import pytest
from e2e.shell import COMMAND, made, refused
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fewstep.app.params import load_params
from fewstep.checks import ConfigError
from fewstep.interop.load import load_model
from fewstep.pipeline.samples import read_samples
from fewstep.sampling.plan import load_plan
from fewstep.sampling.sample import Costs, sample

SMALL = (
    "--noises", 16, "--trial-noises", 16, "--teacher-nfe", 10, "--polish-iterations", 2, "--polish-noises", 8,
    "--frechet-iterations", 1, "--frechet-images", 16, "--finalists", 1, "--finalist-images", 16,
)  # fmt: skip
TRIALS = ("--trials", 14)


@pytest.fixture(scope="module")
def searched(study):
    """Plans of 3 and of 4 calls, nearest to fine solutions."""
    said = made("search", "--model", "model", "--nfe", "4,3", "--out", "found", *SMALL, *TRIALS, cwd=study)
    (study / "said.txt").write_text(said)
    return study


def record(folder, nfe):
    return json.loads((folder / f"search.nfe{nfe}.json").read_text())


def calls_of(model, plan, **options):
    """Network evaluations on each image that the loop counts."""
    costs = Costs()
    condition = model.condition_of(range(2))
    sample(model, plan, seeds=range(2), batch_size=2, condition=condition, costs=costs, **options)
    return costs.nfe


# What a search leaves


def test_a_search_leaves_a_plan_its_record_and_its_trials(searched):
    found = searched / "found"
    assert sorted(path.name for path in found.iterdir()) == sorted(
        name
        for n in (3, 4)
        for name in (f"searched.nfe{n}.json", f"search.nfe{n}.json", f"trials.nfe{n}.parquet")
    )
    model = load_model(searched / "model")
    for nfe, line in zip((3, 4), (searched / "said.txt").read_text().splitlines(), strict=True):
        plan, said = load_plan(found / f"searched.nfe{nfe}.json"), record(found, nfe)
        assert plan.nfe == calls_of(model, plan) == nfe
        assert plan.fingerprint == said["model"]["fingerprint"] == model.fingerprint
        assert plan.provenance["found"] == said["winner"]
        assert plan.provenance["seeds"] == said["seeds"]
        assert plan.provenance["objective"]["name"] == "trajectory"
        assert said["measure"] == "error" and said["error_in"] == "pixels"
        best = min(said["finalists"], key=lambda finalist: finalist["error"])
        assert said["winner"] == best["name"]
        assert line.startswith(f"searched.nfe{nfe}: {said['winner']}, distance to the fine solution")
        trials = pd.read_parquet(found / f"trials.nfe{nfe}.parquet")
        assert len(trials) == 14 == sum(said["trials"][how] for how in ("complete", "pruned", "disqualified"))


def test_numbers_of_calls_in_one_command_learn_from_each_other(searched):
    assert not pd.read_parquet(searched / "found/trials.nfe3.parquet")["seed"].str.startswith("nfe").any()
    seeds = list(pd.read_parquet(searched / "found/trials.nfe4.parquet")["seed"])
    assert [seed for seed in seeds if seed.startswith("nfe3.trial-")], seeds


def test_images_of_a_found_plan_are_of_seeds_that_it_has_not_seen(searched, tmp_path):
    plan = searched / "found/searched.nfe3.json"
    arguments = ("sample", searched / "model", plan, "--out", tmp_path / "s.npz", "--seeds")
    for purpose, (first, last) in record(searched / "found", 3)["seeds"].items():
        sentence = refused(*arguments, f"{last}-{last + 3}")
        assert f"{first}-{last} ({purpose} of searched.nfe3)" in sentence
    assert "overlaps" in refused(*arguments, "1000000000-1000000003")
    assert not any(tmp_path.iterdir())
    made(*arguments, "0-9")
    drawn = read_samples(tmp_path / "s.npz")
    assert drawn.meta["nfe"] == 3 and drawn.meta["plan_hash"] == load_plan(plan).hash
    assert drawn.images.min() < drawn.images.max()
    # the folder as a whole means its plans, not the records beside them
    made("sample", searched / "model", searched / "found", "--out", tmp_path / "all", "--seeds", "0-3")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "searched.nfe3.npz",
        "searched.nfe4.npz",
    ]


def test_a_search_in_features_is_judged_by_the_distance_between_sets(study, tmp_path):
    """Statistics and the dataset that they are of lead to the same plan; another teacher than its own does not."""
    common = ("search", "--model", study / "model", "--nfe", 2, "--extractor", study / "extractor", *SMALL,
              "--trials", 6)  # fmt: skip
    teacher = tmp_path / "teacher.npz"
    said = made("teacher", "--model", study / "model", "--out", teacher, *SMALL[:6])
    assert "16 + 16 solutions of 10 network calls" in said
    said = made(*common, "--reference", study / "stats.npz", "--teacher", teacher, "--out", tmp_path / "a")
    made(*common, "--data", study / "data", "--out", tmp_path / "b")
    assert said.startswith("searched.nfe2: ") and ", FD " in said
    assert (tmp_path / "a/searched.nfe2.json").read_bytes() == (
        tmp_path / "b/searched.nfe2.json"
    ).read_bytes()
    assert (tmp_path / "b.study/teacher.npz").exists() and not (tmp_path / "a.study/teacher.npz").exists()
    found = record(tmp_path / "a", 2)
    assert found["measure"] == "fd" and found["error_in"].startswith("digits-cnn-")
    assert set(found["polish"]) == {"frechet"}
    assert found["winner"] == min(found["finalists"], key=lambda finalist: finalist["fd"])["name"]
    objective = load_plan(tmp_path / "a/searched.nfe2.json").provenance["objective"]
    assert objective["name"] == "frechet" and objective["extractor"] == found["error_in"]


# After a break, and side by side


def again(searched, out, *options):
    return ("search", "--model", searched / "model", "--nfe", 3, "--out", out, *SMALL, *TRIALS, *options)


def assert_same_plan(searched, out):
    name = "searched.nfe3.json"
    assert (out / name).read_bytes() == (searched / "found" / name).read_bytes()


def test_a_finished_search_again_runs_no_trial(searched, tmp_path):
    shutil.copytree(searched / "found.study", tmp_path / "study")
    made(*again(searched, tmp_path / "out", "--study", tmp_path / "study"))
    assert_same_plan(searched, tmp_path / "out")
    name = "trials.nfe3.parquet"
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out" / name), pd.read_parquet(searched / "found" / name)
    )


def test_a_worker_leaves_its_trials_to_the_process_that_leads(searched, tmp_path):
    made(*again(searched, tmp_path / "out", "--worker"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.study"]
    made(*again(searched, tmp_path / "out"))
    assert_same_plan(searched, tmp_path / "out")


def trials_in(journal):
    if not journal.exists():
        return []
    try:
        return optuna.load_study(
            study_name="nfe3", storage=JournalStorage(JournalFileBackend(str(journal)))
        ).get_trials(deepcopy=False)
    except KeyError:  # not made yet
        return []


def kill_amid_a_trial(process, journal, *, after):
    """SIGKILL once so many trials are over and another one is signed, outside of writing to the journal.

    In between, the next start would wait half a minute for the lock, or take the trial for that of another worker.
    """
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            trials = trials_in(journal)
            running = [trial for trial in trials if trial.state.name == "RUNNING"]
            signed = bool(running) and all("worker" in trial.user_attrs for trial in running)
            writes = journal.with_name("journal.log.lock").is_symlink()
            if sum(trial.state.is_finished() for trial in trials) >= after and signed and not writes:
                return
            process.send_signal(signal.SIGCONT)
            time.sleep(0.005)
        raise AssertionError("the search ended before it could be killed")
    finally:
        process.kill()


@pytest.mark.slow
def test_a_killed_search_ends_with_the_plan_of_one_that_was_not(searched, tmp_path):
    command = [COMMAND, *map(str, again(searched, tmp_path / "out"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    journal = tmp_path / "out.study/nfe3/journal.log"
    for after in (3, 12):  # among the known samplers, which come first, and among those proposed
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            kill_amid_a_trial(process, journal, after=after)
    assert not (tmp_path / "out").exists()
    made(*again(searched, tmp_path / "out"))
    assert_same_plan(searched, tmp_path / "out")


@pytest.mark.slow
def test_two_processes_share_the_trials(study, tmp_path):
    made("search", "--model", study / "model", "--nfe", 2, "--out", tmp_path / "out", "--workers", 2, *SMALL,
         "--trials", 300)  # fmt: skip
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "out.study/nfe2/journal.log")))
    trials = optuna.load_study(study_name="nfe2", storage=storage).get_trials(deepcopy=False)
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    assert (
        300 <= len(pd.read_parquet(tmp_path / "out/trials.nfe2.parquet")) <= 301
    )  # both may run the last one
    assert load_plan(tmp_path / "out/searched.nfe2.json").nfe == 2


# Models of diffusers


@pytest.mark.parametrize(("kind", "guidance"), [("ddim", 1.0), ("ldm", 1.0), ("dit", 1.0), ("dit", 2.0)])
def test_a_pipeline_of_diffusers_gets_a_plan(pipelines, tmp_path, kind, guidance):
    """Every guided evaluation counts once in NFE and twice in network calls."""
    made("search", "--model", pipelines[kind], "--nfe", 2, "--guidance", guidance, "--out", tmp_path / "out", *SMALL,
         "--trials", 3)  # fmt: skip
    plan = load_plan(tmp_path / "out/searched.nfe2.json")
    model = load_model(pipelines[kind])
    assert plan.nfe == calls_of(model, plan, guidance=guidance) == 2
    assert plan.guidance == (None if guidance == 1 else guidance)
    assert plan.fingerprint == model.fingerprint
    options = ("--seeds", "0-9", "--guidance", guidance, "--out", tmp_path / "s.npz")
    made("sample", pipelines[kind], tmp_path / "out/searched.nfe2.json", *options)
    drawn = read_samples(tmp_path / "s.npz")
    assert drawn.images.shape[1:] == (model.image_shape[1], model.image_shape[2], model.image_shape[0])
    assert drawn.meta["costs"]["network_calls"] == (2 if guidance == 1 else 4)
    per_image = record(tmp_path / "out", 2)["network_calls"]["trials"] / 16
    assert per_image % (2 if guidance == 1 else 4) == 0


# Mistakes


def _wrong(case, searched, pipelines, tmp):
    """The arguments of a mistaken command, and words that its one sentence must hold."""
    model, out = searched / "model", ("--out", tmp / "out", *SMALL, *TRIALS)
    search, few = ("search", "--model", model, "--nfe"), ("search", "--model", model, "--nfe", 3, *out)
    plan = searched / "found/searched.nfe3.json"
    match case:
        case "one call":
            return (*search, 1, *out), ("at least 2", "1")
        case "no number":
            return (*search, "abc", *out), ("--nfe", "5,8,10", "'abc'")
        case "unknown sampler":
            return (*few, "--sampler", "grid"), ("--sampler", "s3-ranked", "grid")
        case "setting out of range":
            return (*few, "--trial-noises", 17), ("--trial-noises", "16", "17")
        case "study of another model":
            ddim = ("search", "--model", pipelines["ddim"], "--nfe", 3, *out)
            return (*ddim, "--study", searched / "found.study"), ("model", "found.study")
        case "storage with a password":
            return (*few, "--storage", "postgresql://anne:secret@localhost/x"), (
                "storage",
                "anne:***@localhost",
            )
        case "storage out of reach":
            return (*few, "--storage", "sqlite:////no/such/folder/study.db"), ("storage", "/no/such/folder")
        case "database without its driver or server":
            return (*few, "--storage", "postgresql://localhost:1/none"), ("storage", "postgresql")
        case "missing teacher":
            return (*few, "--teacher", tmp / "no.npz"), ("no.npz",)
        case "damaged teacher":
            data = (searched / "found.study/teacher.npz").read_bytes()
            (tmp / "t.npz").write_bytes(data[: len(data) // 2])
            return (*few, "--teacher", tmp / "t.npz"), ("t.npz", "fewstep teacher")
        case "teacher of another model":
            ddim = ("search", "--model", pipelines["ddim"], "--nfe", 3, *out)
            return (*ddim, "--teacher", searched / "found.study/teacher.npz"), (
                "teacher's model",
                "make it again",
            )
        case "teacher of other settings":
            kept = searched / "found.study/teacher.npz"
            return (*few, "--teacher", kept, "--no-to-zero"), ("to_zero", "False")
        case "two references":
            two = ("--reference", searched / "stats.npz", "--data", searched / "data")
            return (*few, *two), ("--reference", "--data")
        case "missing reference":
            return (*few, "--reference", tmp / "no.npz", "--extractor", searched / "extractor"), ("no.npz",)
        case "extractor of another shape":
            ddim = ("search", "--model", pipelines["ddim"], "--nfe", 3, *out)
            measured = ("--reference", searched / "stats.npz", "--extractor", searched / "extractor")
            return (*ddim, *measured), ("digits-cnn", "(1, 8, 8)", "(3, 8, 8)")
        case "no model":
            return ("search", "--model", searched / "data", "--nfe", 3, *out), ("config.json",)
        case "damaged scheduler":
            shutil.copytree(pipelines["ddim"], tmp / "ddim")
            config = tmp / "ddim/scheduler/scheduler_config.json"
            config.write_text(config.read_text()[:50])
            return ("search", "--model", tmp / "ddim", "--nfe", 3, *out), ("scheduler_config.json", "damaged")
        case "scheduler of values that diffusers refuses":
            shutil.copytree(pipelines["ddim"], tmp / "ddim")
            config = tmp / "ddim/scheduler/scheduler_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_schedule": "stairs"}))
            return ("search", "--model", tmp / "ddim", "--nfe", 3, *out), ("scheduler_config.json", "stairs")
        case "guidance without classes":
            return (*few, "--guidance", 2), ("Guidance 2", "takes no condition")
        case "plan exported for a model of another shape":
            return ("export", pipelines["ddim"], plan, "--out", tmp / "scheduler"), ("fingerprint",)
        case "plan sampled by a model of another shape":
            return ("sample", pipelines["ldm"], plan, "--out", tmp / "s.npz"), ("fingerprint", "ldm")
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        "one call", "no number", "unknown sampler", "setting out of range", "study of another model",
        "storage with a password", "storage out of reach", "database without its driver or server", "missing teacher",
        "damaged teacher", "teacher of another model", "teacher of other settings", "two references",
        "missing reference", "extractor of another shape", "no model", "damaged scheduler",
        "scheduler of values that diffusers refuses", "guidance without classes",
        "plan exported for a model of another shape", "plan sampled by a model of another shape",
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_leaves_nothing(case, searched, pipelines, tmp_path):
    arguments, words = _wrong(case, searched, pipelines, tmp_path)
    places = (tmp_path, searched / "found.study")
    before = [set(place.rglob("*")) for place in places]
    sentence = refused(*arguments)
    assert not [word for word in words if word not in sentence], sentence
    assert [set(place.rglob("*")) for place in places] == before, "something half-written stayed"


def test_seeds_of_a_run_must_not_be_searched_on(tmp_path):
    params = tmp_path / "params.yaml"
    text = (
        "dvc_runs: []\nruns:\n  mine:\n    search: {{nfe: [4], seed: {}}}\n    sample: {{n: 1000, seed: 5}}\n"
    )
    params.write_text(text.format(1004))
    with pytest.raises(
        ConfigError, match=r"runs\.mine\.search\.seed: must lie beyond .* 5 to 1004; got 1004"
    ):
        load_params(params)
    params.write_text(text.format(1005))
    assert load_params(params).runs["mine"].search.seed == 1005
