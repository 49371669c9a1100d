"""Whole searches: what they leave, where the winner came from, and that an interruption changes nothing."""

import pytest
from unit.methods.s3.stage.test_known import search_of, untracked
from unit.methods.s3.stage.test_polish import images_search

from fewstep.methods.s3.stage import polish
from fewstep.methods.s3.stage.record import SearchRecord
from fewstep.methods.s3.stage.run import run_search
from fewstep.methods.s3.stage.scoring import Candidate
from fewstep.methods.s3.transfer import transferred
from fewstep.sampling.plan import plan_from_json


def shortened(search, **settings):
    small = {"trials": 14, "polish_iterations": 2, "polish_noises": 8, "finalists": 2, **settings}
    search.settings = search.settings.model_copy(update=small)
    return search


def run(search, folder):
    folder.mkdir(exist_ok=True)
    return run_search(search, storage=str(folder / "journal.log"), work=folder, track=untracked)


@pytest.fixture(scope="module", params=["error", "fd"])
def found(request, tmp_path_factory):
    """A search without and one with a reference."""
    folder = tmp_path_factory.mktemp("found")
    made = search_of(4) if request.param == "error" else images_search(frechet_iterations=1)
    search = shortened(made)
    return search, run(search, folder), folder


def test_the_record_names_the_winner_and_holds_the_best_known_sampler(found):
    search, result, _ = found
    record = SearchRecord.model_validate(result.record)
    measured = {f.name: getattr(f, search.measure) for f in record.finalists}
    assert record.measure == search.measure and record.winner == min(measured, key=measured.get)
    presets = [f.name for f in record.finalists[:2]]
    assert record.best_preset == min(presets, key=measured.get)
    plan = plan_from_json(record.best_preset_plan)
    assert plan.hash == record.finalist(record.best_preset).hash
    assert plan.provenance["preset"] == record.best_preset.split(".")[0]
    tiers = ["frechet"] if search.measure == "fd" else ["trajectory"]
    assert list(record.polish) == tiers
    assert [f.name for f in record.finalists[4:]] == [f"polished.{tier}" for tier in tiers]
    assert record.seeds == {name: tuple(ends) for name, ends in search.seeds.as_json().items()}


def test_an_old_record_needs_no_best_preset_plan(found):
    old = {name: value for name, value in found[1].record.items() if name != "best_preset_plan"}
    assert SearchRecord.model_validate(old).best_preset_plan is None


def test_the_plan_says_where_it_came_from(found):
    search, result, _ = found
    plan, record = result.plan, result.record
    said = plan.provenance
    assert plan.name == f"searched.nfe{plan.nfe}" and plan.sampler == said["sampler"] == "searched"
    assert said["found"] == record["winner"] and said["seeds"] == search.seeds.as_json()
    assert said["objective"]["name"] == {"error": "trajectory", "fd": "frechet"}[search.measure]
    hashes = {f["name"]: f["hash"] for f in record["finalists"]}
    if record["winner"].startswith("trial-"):
        assert "parents" not in said
    elif record["winner"].startswith("polished."):
        assert len(said["parents"]) == 1
        assert hashes.get(record["start"], said["parents"][0]) == said["parents"][0]
    else:
        assert said["parents"] == [hashes[record["winner"]]]


def test_a_plan_of_another_model_is_among_what_it_starts_from(tmp_path):
    """Given the plan that a longer search of the same model would find, nothing else is polished."""
    search = shortened(search_of(4), trials=1, finalists=1)
    good = run(shortened(search_of(4), polish_iterations=60), tmp_path / "other").plan
    search.given = [Candidate("from.other", transferred(good, search.space.schedule), (good.hash,))]
    record = run(search, tmp_path / "own").record
    assert record["start"] == "from.other" and record["given"] == {"from.other": good.hash}
    errors = {f["name"]: f["error"] for f in record["finalists"]}
    assert errors["polished.trajectory"] <= errors["from.other"] < errors[record["best_preset"]]
    assert SearchRecord.model_validate(record).given == {"from.other": good.hash}


def test_a_search_that_is_run_again_reads_what_it_has(found, monkeypatch):
    _, result, folder = found

    def refuse(*_, **__):
        raise AssertionError("nothing is left to be done")

    monkeypatch.setattr(polish, "polish", refuse)
    again = found[0]
    again.seconds.clear(), again.calls.clear()
    second = run(again, folder)
    assert second.plan == result.plan and second.trials.equals(result.trials)
    untimed = ("seconds", "network_calls")
    kept = [{k: v for k, v in one.record.items() if k not in untimed} for one in (second, result)]
    assert kept[0] == kept[1]
