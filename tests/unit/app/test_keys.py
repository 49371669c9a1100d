"""Spec keys cover everything a result depends on, and nothing else."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.app.keys import leftovers, make_specs, spec_path, sync_specs
from fewstep.app.params import Params, Settings
from fewstep.app.settings import EvaluateSettings, PrepareSettings, TrackSettings, TrainSettings
from fewstep.app.stages import STAGES
from fewstep.checks import ConfigError, DataError
from fewstep.pipeline.stage.spec import SCHEMA, Spec, load_spec, stamp

ROOT = Path(__file__).parents[3]


def specs(**sections: Any) -> dict[str, Spec]:
    sections = {**sections, "search": {"nfe": [5], **sections.get("search", {})}}
    return make_specs("digits", {"digits": Settings.model_validate(sections)})


def all_keys(**sections: Any) -> dict[str, str]:
    return {place: spec.key for place, spec in specs(**sections).items()}


def key(place: str, **sections: Any) -> str:
    return specs(**sections)[place].key


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(**sections: Any) -> Params:
    return Params(dvc_runs=[], runs={"digits": Settings.model_validate(sections)})


def test_a_key_is_a_function_of_the_settings() -> None:
    assert key("train") == key("train")
    assert key("train", train={"steps": 7}) != key("train")
    assert key("train", train={"steps": 7}) == key("train", train={"steps": 7}, sample={"n": 99})


def test_a_key_covers_what_is_upstream() -> None:
    before, after = all_keys(), all_keys(prepare={"test_fraction": 0.5})
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


ZOO = {
    "model": {"zoo": "cifar10-32-tiny"},
    "extractor": {"name": "effnet-lite0-p320"},
    "evaluate": {"metrics": ["fd"]},
}


def test_a_run_with_a_model_of_the_zoo_neither_prepares_nor_trains() -> None:
    ours = specs(**ZOO)
    assert {"zoo", "plans/nfe4", "sample/plans/nfe4", "evaluate/search/nfe5", "report"} <= ours.keys()
    assert not {"prepare", "train", "extractor", "stats", "detect"} & ours.keys()
    assert "zoo" in ours["plans/nfe4"].upstream
    assert key("plans/nfe4", **ZOO) == key("plans/nfe4", **ZOO, prepare={"test_fraction": 0.5})


def test_another_model_in_the_zoo_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key("plans/nfe4", **ZOO)
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo")
    monkeypatch.setenv("FEWSTEP_ZOO", str(tmp_path / "zoo"))
    assert key("plans/nfe4", **ZOO) == before
    sums = tmp_path / "zoo" / "cifar10-32-tiny" / "zoo.json"
    sums.write_text(sums.read_text().replace('"licence"', '"licence" '))
    assert key("plans/nfe4", **ZOO) != before


def test_swapped_values_are_a_change() -> None:
    assert key("train", train={"steps": 5, "warmup": 6}) != key("train", train={"steps": 6, "warmup": 5})


CHANGES: dict[str, Any] = {  # for fields whose other values do not follow from their type
    "prepare.dataset": {"dataset": "cifar10", "source": "x"},
    "prepare.name": {"name": "x"},
    "prepare.source": {"source": "x"},
    "prepare.size": {"size": 16},
    "prepare.limit": {"limit": 50},
    "model.zoo": None,  # needs a second field; below
    "model.schedule": {"schedule": {"type": "flow"}},
    "model.prediction": {"prediction": "v"},
    "model.widths": {"widths": [1.0, 0.25]},
    "train.weighting": {"weighting": "snr"},
    "train.lr_schedule": {"lr_schedule": "constant"},
    "train.precision": {"precision": "bf16"},
    "extractor.name": {"name": "effnet-lite0-p320"},
    "stats.split": {"split": "test"},
    "plans.presets": {"presets": ["ddim"]},
    "plans.grids": {"grids": ["karras"]},
    "search.sampler": {"sampler": "tpe"},
    "search.max_order": {"max_order": 2},
    "align.objectives": {"objectives": ["denoise"]},
    "align.optimiser": {"optimiser": "adam"},
    "stepaware.cost": {"cost": "ms"},
    "evaluate.metrics": {"metrics": ["fd"]},
    "evaluate.resamples": {"resamples": 50},
    "detect.match": {"match": ["ddim*"]},
    "detect.classifiers": {"classifiers": ["forest"]},
    "quantize.bits": {"bits": ["w4a8"]},
    "quantize.methods": {"methods": ["naive"]},
    "quantize.fsc_scope": {"fsc_scope": "tib"},
    "quantize.weight_scheme": {"weight_scheme": "symmetric"},
    "quantize.range_search": {"range_search": "minmax"},
    "quantize.keep": {"keep": ["first"]},
    "track.uri": {"uri": "x"},
    "disturb.resamples": {"resamples": 50},
    "model.network": {"network": "transformer"},
    "autoencoder.factor": {"factor": 4},
    "autoencoder.source": None,  # instead of a factor; below
    "maps.kind": {"kind": "map"},
    "maps.encoder": {"encoder": "frozen"},
    "maps.shapes": {"shapes": ["perlin"]},
    **{
        f"base.{field}": {field: value}
        for field, value in {"weighting": "snr", "lr_schedule": "constant", "precision": "bf16"}.items()
    },
    "train.objective": {"objective": "rad-all-pixels"},
    "train.lora_rank": {"lora_rank": 5},
    "train.lora_roles": {"lora_roles": ["attn"]},
    "inpaint.masks": {"masks": ["box"]},
    "inpaint.match": {"match": ["ddim*"]},
    "inpaint.repaint": {"repaint": ["5x2"]},
    "inpaint.resamples": {"resamples": 50},
    "model.tile": {"tile": 4},
    "enlarge.size": {"size": ["16x16"]},
    "enlarge.match": {"match": ["ddim*"]},
    "enlarge.decodes": {"decodes": ["plain"]},
    "enlarge.memory": {"memory": [16]},
    "enlarge.resamples": {"resamples": 50},
    "boundary.attribute": {"attribute": ["9/4"]},
    "boundary.t": {"t": 0.3},
    "boundary.further": {"further": [0.8]},
    "boundary.times": {"times": [0.5]},
    "edit.space": {"space": "h"},
    "lfm.resamples": {"resamples": 50},
    "encode.encoder": {"encoder": "effnet-lite0"},
    "encode.heldout_classes": {"heldout_classes": [8]},
    "pairs.mode": {"mode": "class"},
    "pairs.source": {"mode": "table", "source": "pairs.csv"},
    "pairs.quantiles": {"quantiles": [0.2, 0.9]},
    "claims.runs": None,  # makes a run of another kind; below
    "gan.network": None,  # whose variants are trained
    "gan.heads": {"heads": 2},
    "gan.width": {"width": 64},
    "gan.betas_g": {"betas_g": [0.0, 0.9]},
    "gan.betas_d": {"betas_d": [0.0, 0.9]},
    "gan.knee": {"knee": 100},
    "gan.loss": {"loss": "wasserstein"},
    "gan.attention": {"attention": "dot"},
    "gan.bcr": {"bcr": 1.0, "augment": ["colour"]},
    "gan.augment": {"augment": ["colour"]},
    "gan.probe_every": {"probe_every": 500},
    "gan.log_every": {"log_every": 50},
    "ttur.network": {"network": "resnet"},
    "unfitted.name": {"name": "effnet-lite1-p320"},
    "vitgan.variants": {"variants": ["full", "no overlap"]},
    "prepare.max_pixels": {"max_pixels": 10**9},  # with skip_corrupt more images are kept
    "sample.guidance": None,  # needs a second field; below
}
NUMBERS = {  # every stage is in the run
    "model": {"widths": [1.0, 0.5]},
    "search": {"nfe": [5]},
    "stepaware": {"nfe": [5]},
    "align": {"nfe": [5]},
    "quantize": {"nfe": [5]},
    "detect": {"nfe": [5]},
    "disturb": {"images": 10},
    "gan": {"network": "vitgan"},
    "ttur": {"network": "dcgan"},
    "vitgan": {"variants": ["full"]},
    "boundary": {"attribute": ["3/8"]},
    "edit": {"heldout": 10},
}
LATENTS = {  # every stage of latents is in the run
    "autoencoder": {"factor": 2},
    "model": {"schedule": {"type": "flow"}, "prediction": "u"},
    "train": {"label_dropout": 0.1},
    "maps": {"kind": "mask"},
    "lfm": {"images": 10},
}
TOKENS = {  # every stage of pairs of images is in the run
    "encode": {"encoder": "classifier"},
    "pairs": {"mode": "neighbours"},
    "train": {"label_dropout": 0.1},
    "semantica": {"images": 10},
}
INPAINT = {  # every stage of inpainting is in the run
    "base": {"steps": 10},
    "train": {"objective": "rad", "lora_rank": 4},
    "inpaint": {"heldout": 10},
}
PATCHES = {  # a model of patches, and images by it at other sizes
    "train": {"objective": "patchdm"},
    "model": {"tile": 8},
    "enlarge": {"images": 10},
}
BASES = {
    **dict.fromkeys(("enlarge", "model.tile"), PATCHES),
    "model.network": {},
    **dict.fromkeys(("base", "inpaint"), INPAINT),
    **dict.fromkeys(("train.objective", "train.lora_rank", "train.lora_roles"), INPAINT),
    **dict.fromkeys(("autoencoder", "latents", "maps", "lfm"), LATENTS),
    **dict.fromkeys(("encode", "pairs", "semantica"), TOKENS),
}
"""Settings without which a field or section has no effect, where these are not `NUMBERS`."""


def changed_value(section: str, field: str, value: Any) -> dict[str, Any] | None:
    if f"{section}.{field}" in CHANGES:
        return CHANGES[f"{section}.{field}"]
    if field == "nfe":
        return {field: [4, 5] if section == "plans" else [4]}
    if isinstance(value, bool):
        return {field: not value}
    if isinstance(value, list):
        return {field: [*value, 7]}
    if isinstance(value, int):
        return {field: value + (8 if field == "channels" else 1)}
    return {field: value * 0.9 + 0.011}  # which leaves no default as it is


def test_every_setting_that_can_change_a_result_is_in_some_key() -> None:
    keys: dict[str, dict[str, str]] = {}
    for section, fields in Settings().result_settings().items():
        for field, value in fields.items():
            change = changed_value(section, field, value)
            if change is not None:
                base: Any = BASES.get(f"{section}.{field}", BASES.get(section, NUMBERS))
                before = keys.setdefault(str(base), all_keys(**base))
                after = all_keys(**{**base, section: {**base.get(section, {}), **change}})
                assert after != before, f"no result depends on {section}.{field}"
    assert key("plans/nfe4", **ZOO) != key("plans/nfe4")
    conditional = {"model": {"class_conditional": True}, "train": {"label_dropout": 0.1}}
    place = "sample/plans/nfe4"
    assert key(place, **conditional, sample={"guidance": 2.0}) != key(place, **conditional)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("prepare", {"workers": 7}),
        ("train", {"checkpoint_seconds": 7.0}),
        ("sample", {"batch_size": 7, "shards": 3}),
        ("evaluate", {"shards": 3, "max_pixels": 10**9}),
        ("track", {"live": True}),
    ],
)
def test_settings_of_speed_are_in_no_key(section: str, change: dict[str, Any]) -> None:
    assert all_keys(**{section: change}) == all_keys()


def test_each_number_of_calls_stands_alone() -> None:
    fewer = {"plans": {"nfe": [4]}}
    assert key("evaluate/plans/nfe4", **fewer) == key("evaluate/plans/nfe4")
    assert key("report", **fewer) != key("report")


def test_what_starts_from_a_known_sampler_does_not_depend_on_searches_of_other_numbers() -> None:
    align = {"nfe": [4, 5]}
    after = all_keys(align=align, search={"trials": 7})
    before = all_keys(align=align)
    assert after["align/nfe4"] == before["align/nfe4"]
    assert after["align/nfe5"] != before["align/nfe5"]


def test_a_published_extractor_does_not_depend_on_the_training_of_one() -> None:
    assert set(specs(extractor={"name": "inception2015"})["stats"].upstream) == {"prepare"}
    assert set(specs()["stats"].upstream) == {"prepare", "extractor"}


def test_the_hash_that_dvc_recorded_of_raw_data_counts(folder: Path) -> None:
    raw = {"prepare": {"dataset": "cifar10", "source": "raw/c.tar.gz"}}
    (folder / "raw").mkdir()
    without = key("prepare", **raw)
    record = folder / "raw" / "c.tar.gz.dvc"
    record.write_text("outs:\n- md5: 0123456789abcdef\n  size: 3\n  path: c.tar.gz\n")
    first = key("prepare", **raw)
    record.write_text("outs:\n- md5: fedcba9876543210\n  size: 3\n  path: c.tar.gz\n")
    assert len({without, first, key("prepare", **raw)}) == 3


def test_a_spec_is_read_back_and_gives_typed_sections(folder: Path) -> None:
    sync_specs(params(train={"steps": 7}))
    spec = load_spec(spec_path("digits", "train"))
    assert spec.section("train", TrainSettings).steps == spec.value("train.steps") == 7
    assert spec.section("track", TrackSettings) == TrackSettings()
    with pytest.raises(ConfigError, match="must hold prepare settings, got the spec of stage train"):
        spec.section("prepare", PrepareSettings)
    with pytest.raises(ConfigError, match=r"the spec for digits/train must hold sample\.n"):
        spec.value("sample.n")


def test_a_stamp_holds_the_key_and_the_names_of_the_files(folder: Path) -> None:
    spec = specs()["train"]
    (folder / "plans").mkdir()
    for name in ("a.json", "plans/b.json", ".a.json.tmp"):
        (folder / name).write_text("{}")
    content = json.loads(stamp(spec, folder).read_text())
    assert content["spec_key"] == content["key"] == spec.key
    assert content["settings"]["train"]["steps"] == Settings().train.steps
    assert content["files"] == ["a.json", "plans/b.json"]


def test_a_spec_for_other_code_is_refused(folder: Path) -> None:
    sync_specs(params())
    path = spec_path("digits", "train")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "code": "0" * 16}))
    with pytest.raises(ConfigError, match="the code of stage train must be the code that .* was written for"):
        load_spec(path)


@pytest.mark.parametrize("text", ["[]", "{}", f'{{"schema": "{SCHEMA}"}}', "{"])
def test_what_is_not_a_spec_is_refused(folder: Path, text: str) -> None:
    (folder / "spec.json").write_text(text)
    with pytest.raises(DataError, match="spec.json"):
        load_spec(folder / "spec.json")


def test_a_key_that_is_a_path_is_refused(folder: Path) -> None:
    sync_specs(params())
    path = spec_path("digits", "train")
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "../../../../escaped"}))
    with pytest.raises(DataError, match="must be a spec written by the workflow"):
        load_spec(path)


def test_a_section_that_is_no_longer_valid_is_one_sentence(folder: Path) -> None:
    sync_specs(params())
    path = spec_path("digits", "evaluate/plans/nfe4")
    content = json.loads(path.read_text())
    content["settings"]["evaluate"]["level"] = 7.0
    path.write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match="evaluate settings of the spec for digits/evaluate/plans/nfe4 must"
    ):
        load_spec(path).section("evaluate", EvaluateSettings)


PLACE = "evaluate/plans/nfe4"


def result(folder: Path, *, spec_key: str, mtime: float, files: tuple[str, ...] = ()) -> Path:
    path = folder / "results" / "digits" / PLACE / "spec.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": spec_key, "files": files}))
    os.utime(path, (mtime, mtime))
    return path


def test_the_date_of_a_spec_says_whether_its_result_fits(folder: Path) -> None:
    fits = make_specs("digits", {"digits": Settings()})[PLACE].key
    path = spec_path("digits", PLACE)

    old = result(folder, spec_key=fits, mtime=1e9)
    sync_specs(params())
    assert path.stat().st_mtime < old.stat().st_mtime, "what fits is no reason to run"

    other = result(folder, spec_key="other", mtime=1.1e9)
    sync_specs(params())
    renewed = path.stat().st_mtime
    assert renewed > other.stat().st_mtime, "what does not fit is older than its spec"

    serial = json.loads(path.read_text())["serial"]
    sync_specs(params())
    assert path.stat().st_mtime == renewed, "a signal that was given is not given again"
    assert json.loads(path.read_text())["serial"] != serial, "another checksum than any that was recorded"

    result(folder, spec_key=fits, mtime=renewed + 2)
    sync_specs(params())
    assert path.stat().st_mtime < old.stat().st_mtime


def test_a_result_that_has_lost_a_file_does_not_fit(folder: Path) -> None:
    fits = make_specs("digits", {"digits": Settings()})[PLACE].key
    stamped = result(folder, spec_key=fits, mtime=1e9, files=("a.json",))
    sync_specs(params())
    assert spec_path("digits", PLACE).stat().st_mtime > stamped.stat().st_mtime
    (stamped.parent / "a.json").write_text("{}")
    sync_specs(params())
    assert spec_path("digits", PLACE).stat().st_mtime < stamped.stat().st_mtime


def test_a_result_with_a_future_date_and_no_fit_is_still_seen(folder: Path) -> None:
    path = spec_path("digits", PLACE)
    sync_specs(params())
    first = json.loads(path.read_text())
    result(folder, spec_key="other", mtime=path.stat().st_mtime)
    sync_specs(params())
    assert json.loads(path.read_text())["serial"] != first["serial"], (
        "the content differs for checksum comparisons"
    )


def test_leftovers_are_what_the_settings_do_not_ask_for(folder: Path) -> None:
    def stamped(*places: str, run: str = "digits") -> None:
        for place in places:
            (folder / "results" / run / place).mkdir(parents=True)
            (folder / "results" / run / place / "spec.json").write_text("{}")

    stamped("prepare", "train", "extractor", "evaluate/plans/nfe4", "evaluate/plans/nfe8", "plans/nfe8")
    stamped("evaluate/plans/nfe8", run="other")
    (folder / "results/digits/evaluate/plans/.nfe4.x").mkdir()
    settings = Settings.model_validate({"plans": {"nfe": [4]}})
    top = Path("results/digits")
    left = [top / place for place in ("evaluate/plans/.nfe4.x", "evaluate/plans/nfe8", "plans/nfe8")]
    assert leftovers("digits", settings) == left
    published = Settings.model_validate({"plans": {"nfe": [4, 8]}, "extractor": {"name": "inception2015"}})
    assert leftovers("digits", published) == [top / "evaluate/plans/.nfe4.x", top / "extractor"]


def test_a_torn_spec_is_replaced(folder: Path) -> None:
    path = spec_path("digits", "train")
    path.parent.mkdir(parents=True)
    path.write_text('{"key": ')
    sync_specs(params())
    assert load_spec(path).key == key("train")


def test_dvc_sees_all_settings_and_keeps_all_results() -> None:
    """A change that Snakemake acts on must also make DVC run the stage, whatever stages there are."""
    (stage,) = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    assert set(stage["do"]["params"]) == {"defaults", "runs.${item}"}
    assert {"src/fewstep", "Snakefile", "workflow/rules"} <= set(stage["do"]["deps"])
    assert stage["do"]["outs"] == [{"results/${item}": {"persist": True}}]
    roots = {result.folder("digits").parts[0] for result in STAGES.results(Settings())}
    assert roots == {"results", "state"}


def test_a_training_depends_on_the_code_of_its_objective_and_no_other_does() -> None:
    aware = specs(train={"objective": "rad"})["train"]
    assert "fewstep.methods.rad.objective" in aware.roots
    assert not any("rad" in root for root in specs()["train"].roots)
    assert "base" in specs(**INPAINT)["train"].upstream
