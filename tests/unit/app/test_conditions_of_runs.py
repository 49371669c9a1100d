"""Which stored conditions the workflow gives to each command."""

import pytest

from fewstep.app.params import Settings
from fewstep.app.stages import STAGES

RUN = {
    "autoencoder": {"factor": 2},
    "maps": {"kind": "mask"},
    "model": {"schedule": {"type": "flow"}, "prediction": "u"},
    "search": {"nfe": [4]},
    "align": {"nfe": [4], "objectives": ["trajectory"]},
    "lfm": {"images": 20},
}


def options(settings, place: str) -> dict[str, list[str]]:
    """Values of the options of a job, by name."""
    result = next(one for one in STAGES.results(settings) if one.place == place)
    found: dict[str, list[str]] = {}
    name = ""
    for word in STAGES.words(result, "run", settings)[1:]:
        if word.startswith("--"):
            name = word
        else:
            found.setdefault(name, []).append(word)
            name = ""
    return found


def test_training_search_and_report_have_rows_of_their_own():
    settings = Settings.model_validate(RUN)
    rows = {
        "train": "train",
        "teacher": "search",
        "search/nfe4": "search",
        "align/nfe4": "search",
        "compose": "search",
        "sample/plans/nfe4": "report",
        "sample/search/nfe4": "report",
        "lfm": "report",
    }
    for place, part in rows.items():
        assert options(settings, place)["--conditions"] == [f"results/run/maps/{part}"], place
    stamps = {
        place: STAGES.stamps(next(r for r in STAGES.results(settings) if r.place == place), "run", settings)
        for place in rows
    }
    assert all("results/run/maps/spec.json" in found["conditions"] for found in stamps.values())


def test_latents_take_the_place_of_images_in_training_alone():
    settings = Settings.model_validate(RUN)
    train = options(settings, "train")
    assert train["--data"] == ["results/run/latents"] and train["--autoencoder"] == [
        "results/run/autoencoder"
    ]
    assert options(settings, "stats")[""] == ["results/run/prepare"]
    source = Settings.model_validate({**RUN, "autoencoder": {"source": "raw/vae"}})
    assert options(source, "latents")["--autoencoder"] == ["raw/vae"]
    assert "autoencoder" not in {result.place for result in STAGES.results(source)}


def test_a_run_without_conditions_passes_none():
    settings = Settings.model_validate({"search": {"nfe": [4]}})
    places = [result.place for result in STAGES.results(settings)]
    assert "maps" not in places and "latents" not in places
    assert all("--conditions" not in options(settings, place) for place in places)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"train": {"flip": True}}, "train.flip: must be false"),
        ({"align": {"nfe": [4]}}, "align.objectives: must not need training images"),
        (
            {"model": {"network": "transformer", "widths": [1.0, 0.5]}},
            "widths: must be .1.0. for a transformer",
        ),
        ({"lfm": {"images": 20, "guidances": [2.0]}}, "lfm.guidances: must be .1.0."),
        ({"autoencoder": {"factor": 3}}, "factor: must be a power of two, got 3"),
        (
            {"maps": {"kind": "map"}, "model": {"class_conditional": True}},
            "model.class_conditional: must be false for a model of maps",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        Settings.model_validate({**RUN, **change})
