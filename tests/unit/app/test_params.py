"""`params.yaml` and the models that check it agree, and each mistake is one sentence that names its place."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from ruamel.yaml import YAML

from fewstep.app import settings as plain
from fewstep.app.params import Settings, load_params, merged, parse_params, schema_text, settings
from fewstep.checks import ConfigError
from fewstep.data.prepare import DATASETS, loader
from fewstep.methods.aligner.objectives import OBJECTIVES
from fewstep.methods.aligner.stage.settings import AlignSettings
from fewstep.pipeline.stage.settings import Section

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params.yaml"
RUNS = (
    "digits",
    "papers",
    "digits-full",
    "digits-gan",
    "cifar10-zoo",
    "cifar10",
    "cifar10-gan",
    "celeba",
    "lsun-bedroom",
    "folder",
    "digits-latent",
    "digits-latent-mask",
    "digits-latent-map",
    "celeba-latent",
    "lsun-bedroom-latent",
    "digits-semantica",
    "digits-semantica-neighbours",
    "digits-semantica-image",
    "digits-inpaint",
    "celeba-inpaint",
    "lsun-bedroom-inpaint",
    "digits-patch",
    "digits-patch-pixels",
    "celeba-patch",
    "lsun-bedroom-patch",
    "digits-edit",
    "celeba-edit",
    "lsun-bedroom-edit",
    "cifar10-semantica",
)


ZOO = {
    "model": {"zoo": "cifar10-32-tiny"},
    "extractor": {"name": "effnet-lite0-p320"},
    "evaluate": {"metrics": ["fd"]},
}

PATCHES = {"train": {"objective": "patchdm"}, "model": {"tile": 8}}


def raw(**sections: Any) -> dict[str, Any]:
    return {"dvc_runs": ["digits"], "defaults": {}, "runs": {"digits": sections}}


def mistakes(content: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_params(content)
    return str(caught.value).splitlines()


def test_the_file_states_every_default() -> None:
    stated = yaml.safe_load(PARAMS.read_text())["defaults"]
    assert stated == Settings().model_dump(mode="json")


def test_the_file_has_the_runs_and_they_are_valid() -> None:
    params = load_params(PARAMS)
    assert tuple(params.runs) == RUNS
    assert params.dvc_runs == ["digits"]
    assert settings(params, "celeba").prepare.size == 64
    assert settings(params, "celeba").evaluate == Settings().evaluate


def test_yaml_1_1_and_1_2_read_the_file_alike() -> None:
    old = yaml.safe_load(PARAMS.read_text())  # what other programs may read it with
    new = YAML(typ="safe", pure=True).load(PARAMS)  # the parser of DVC, and ours
    assert json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def loaded(path: Path, field: str, text: str) -> Any:
    path.write_text(f"dvc_runs: []\nruns:\n  digits:\n    train: {{{field}: {text}}}\n")
    return getattr(load_params(path).runs["digits"].train, field)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), ("2e-05", 2e-5), ("1.0e-3", 0.001), ("1E-3", 0.001), ("5.e-1", 0.5), ("0.001", 0.001)],
)
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str, number: float) -> None:
    """`dvc exp run -S train.lr=0.00002` writes 2e-05, which YAML 1.1 reads as a string."""
    assert loaded(tmp_path / "params.yaml", "lr", text) == number


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("flip", "yes"),
        ("flip", "on"),
        ("steps", "12:30:00"),
        ("lr", "12:30.5"),
        ("lr", "'1e-3'"),
        ("lr", '"2e-05"'),
        ("lr", "1e"),
        ("lr", "2e-05x"),
    ],
)
def test_what_is_no_number_or_boolean_for_dvc_is_refused(tmp_path: Path, field: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"runs\.digits\.train\.{field}: must be a valid"):
        loaded(tmp_path / "params.yaml", field, text)


@pytest.mark.parametrize(
    "text",
    ["1e-3", "yes", "12:30:00", "010", "0o10", "0x10", "1_000", "1e3", "+1e3", ".5e1", "~", "2001-01-01"],
)
def test_a_value_means_what_it_means_to_dvc(tmp_path: Path, text: str) -> None:
    """Whatever YAML 1.1 makes of it: 010 is 8 there."""
    dvc = YAML(typ="safe", pure=True).load(text)
    for field in ("lr", "steps", "flip"):
        try:
            ours = loaded(tmp_path / "params.yaml", field, text)
        except ConfigError:
            with pytest.raises(ConfigError):
                parse_params(raw(train={field: dvc}))
        else:
            assert ours == dvc


def test_what_no_parser_can_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for text in ("seed: 2001-99-99\n", "runs: {}\nruns: {}\n", "a: !!python/name:os.system x\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="must be YAML") as caught:
            load_params(path)
        assert "\n" not in str(caught.value)


def test_the_schema_is_in_step() -> None:
    stored = (ROOT / "workflow" / "schemas" / "params.schema.json").read_text()
    assert stored == schema_text(), "run: make schema"


def test_sections_merge_and_lists_are_replaced() -> None:
    content = raw(train={"steps": 7}, plans={"nfe": [5]})
    content["defaults"] = {"train": {"steps": 9, "lr": 0.5}, "plans": {"nfe": [4, 6], "grids": ["karras"]}}
    assert merged(content, "digits") == {
        "train": {"steps": 7, "lr": 0.5},
        "plans": {"nfe": [5], "grids": ["karras"]},
    }
    assert content["defaults"]["train"]["steps"] == 9


def test_a_run_without_changes_may_be_empty() -> None:
    content = {"dvc_runs": [], "defaults": None, "runs": {"digits": None}}
    assert parse_params(content).runs["digits"] == Settings()


def test_an_unknown_field_is_named_with_what_is_allowed() -> None:
    (line,) = mistakes(raw(train={"stpes": 3}))
    assert line.startswith(
        "params.yaml: runs.digits.train.stpes: unknown field; allowed: steps, batch_size, lr,"
    )


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"train": {"steps": 0}}, "train.steps: must be greater than or equal to 1, got 0"),
        ({"train": {"lr": "1e-3"}}, "train.lr: must be a valid number, got '1e-3'"),
        ({"train": {"flip": "yes"}}, "train.flip: must be a valid boolean, got 'yes'"),
        ({"train": 3}, "train: must be a mapping of settings, got 3"),
        ({"plans": {"nfe": []}}, "plans.nfe: List must have at least 1 item after validation, not 0, got []"),
        ({"plans": {"nfe": [4, 4]}}, "plans.nfe: must not repeat a value, got [4, 4]"),
        ({"plans": {"nfe": [4, 0]}}, "plans.nfe.1: must be greater than or equal to 1, got 0"),
        ({"evaluate": {"level": 1.0}}, "evaluate.level: must be less than 1, got 1.0"),
        (
            {"evaluate": {"metrics": ["fid"]}},
            "evaluate.metrics.0: must be 'fd', 'kid', 'cmmd', 'pr', 'dc', 'is', 'inf' or 'mem', got 'fid'",
        ),
        ({"evaluate": {"resamples": 11}}, "evaluate.resamples: must be a multiple of 2, got 11"),
        ({"detect": {"nfe": [7]}}, "detect.nfe: must be among plans.nfe, [4, 5, 6, 8, 10, 50]; got [7]"),
        (
            {"model": {"zoo": "cifar10-32-tiny"}},
            "extractor.name: must not need training images with model.zoo, got classifier; take a published extractor",
        ),
        (
            {"extractor": {"name": "effnet-lite0-p320"}, "unfitted": {"name": "effnet-lite0-p320"}},
            "unfitted.name: must differ from extractor.name, in whose features plans are fitted, got effnet-lite0-p320 "
            "for both; take auto, or none to report the fitted features",
        ),
        (
            {"extractor": {"seed": 3}, "unfitted": {"seed": 3}},
            "unfitted.seed: must differ from extractor.seed, whose features plans are fitted in, got 3 for both",
        ),
        (
            {**ZOO, "unfitted": {"name": "effnet-lite0-p320"}},
            "unfitted.name: must differ from extractor.name, in whose features plans are fitted, got effnet-lite0-p320 "
            "for both; take auto, or none to report the fitted features",
        ),
        (
            {**ZOO, "unfitted": {"name": "classifier"}},
            "unfitted.name: must not need training images with model.zoo, got classifier; take auto, or none",
        ),
        (
            {**ZOO, "align": {"nfe": [4]}},
            "align.objectives: must not need training images with model.zoo, got ['trajectory', 'paper']; take the "
            "objective trajectory alone",
        ),
        (
            {**ZOO, "evaluate": {"metrics": ["fd", "kid"]}},
            "evaluate.metrics: must not need training images with model.zoo, got ['fd', 'kid']; take the metric fd "
            "alone",
        ),
        (
            {**ZOO, "detect": {"nfe": [4]}},
            "detect.nfe: must not need training images with model.zoo, got [4]; leave it empty",
        ),
        (
            {"align": {"nfe": [7]}},
            "align.nfe: must be among the numbers of calls in search.nfe or plans.nfe, whose plans it starts from; "
            "got [7]",
        ),
        (
            {"stepaware": {"nfe": [4]}},
            "stepaware.nfe: needs a model of several widths, such as model.widths: [1.0, 0.5]; got [4] and widths "
            "[1.0]",
        ),
        (
            {"search": {"nfe": [4], "seed": 7}},
            "search.seed: must lie beyond the seeds that are reported on, 0 to 999; got 7",
        ),
        ({"model": {"schedule": {"typ": "edm"}}}, "model.schedule.typ: unknown field; allowed: type"),
        (
            {"prepare": {"dataset": "celeba"}},
            "prepare.source: must name the file or folder that holds celeba, got nothing",
        ),
        (
            {"sample": {"guidance": 2.0}},
            "sample.guidance: must be 1 for a model that is not trained without its conditions, too, got 2.0; set "
            "train.label_dropout, such as 0.1",
        ),
        (
            {"train": {"objective": "rod"}},
            "train.objective: must be one of patchdm, patchdm-pixels, rad, rad-all-pixels; got rod.",
        ),
        (
            {"train": {"objective": "rad"}, "model": {"widths": [1.0, 0.5]}},
            "model.widths: must be [1.0] with train.objective, got [1.0, 0.5]",
        ),
        (
            {"train": {"lora_rank": 4}},
            "train.lora_rank: must be null without base.steps, whose model is adapted, got 4",
        ),
        (
            {"inpaint": {"heldout": 10}},
            "inpaint.heldout: must be 0 for a model without times per pixel, got 10; set train.objective to rad",
        ),
        (
            {"enlarge": {"images": 10}},
            "enlarge.images: must be 0 for a model that is not one of patches, got 10; set train.objective to patchdm "
            "and model.tile",
        ),
        (
            {**PATCHES, "enlarge": {"images": 10, "size": ["16x16", "16x20"]}},
            "enlarge.size: sides must be multiples of model.tile, 8, got 16x20",
        ),
        (
            {"model": {"tile": 8, "network": "transformer"}},
            "model.tile: must be null but for a U-Net of one width, got 8 for transformer of the widths [1.0]",
        ),
        (
            {"edit": {"heldout": 10}},
            "edit.heldout: must be 0 without boundary.attribute, whose boundaries are edited across, got 10",
        ),
        (
            {**PATCHES, "boundary": {"attribute": ["3/8"]}},
            "boundary.attribute: must be none for a network of patches, got model.tile 8",
        ),
        (
            {"boundary": {"attribute": ["3/8"]}, "model": {"network": "transformer"}},
            "boundary.attribute: must be none but for a U-Net, got model.network transformer",
        ),
        (
            {"base": {"steps": 10}, "autoencoder": {"factor": 2}},
            "autoencoder.factor: must be null with base.steps, a model of pixels alone, got 2",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(sections: dict[str, Any], line: str) -> None:
    assert mistakes(raw(**sections)) == [f"params.yaml: runs.digits.{line}"]


def test_a_run_with_a_model_of_the_zoo_may_be_for_dvc() -> None:
    assert parse_params(raw(**ZOO) | {"dvc_runs": ["digits"]}).dvc_runs == ["digits"]


def test_all_mistakes_come_at_once_and_once() -> None:
    content = raw(train={"stpes": 3}, sample={"n": 1})
    content["defaults"] = {"evaluate": {"level": 2.0}}
    content["runs"]["other"] = {}
    places = [line.split(": ")[1] for line in mistakes(content)]
    assert sorted(places) == ["defaults.evaluate.level", "runs.digits.sample.n", "runs.digits.train.stpes"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([], "must be a mapping with dvc_runs, defaults and runs"),
        ({"dvc_runs": [], "runs": {}}, "runs: must be a mapping with at least one run, got {}"),
        (
            {"dvc_runs": [], "runs": {"A b": {}}},
            "runs.A b: the name of a run must be small letters, digits and dashes",
        ),
        ({"dvc_runs": ["x"], "runs": {"a": {}}}, "dvc_runs: 'x' must be one of the runs: a"),
        ({"dvc_runs": [["a"]], "runs": {"a": {}}}, "dvc_runs: ['a'] must be one of the runs: a"),
        ({"dvc_runs": None, "runs": {"a": {}}}, "dvc_runs: must be a list of runs, got None"),
        (
            {"dvc_runs": [], "runs": {"a": {}}, "run": 1},
            "run: unknown field; allowed: dvc_runs, defaults, runs",
        ),
        ({"dvc_runs": [], "runs": {"a": 5}}, "runs.a: must be a mapping of sections, got 5"),
        (
            {"dvc_runs": [], "runs": {"a": {}}, "defaults": 5},
            "defaults: must be a mapping of sections, got 5",
        ),
    ],
)
def test_a_file_of_the_wrong_shape_is_one_sentence(content: object, line: str) -> None:
    assert mistakes(content) == [f"params.yaml: {line}"]


def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params.yaml: must be a readable file; No such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("runs: [\n")
    with pytest.raises(ConfigError, match="must be YAML") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_run_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="run must be one of digits, papers, digits-full, .*, got 'mnist'"):
        settings(load_params(PARAMS), "mnist")


def sections_of(model: type[BaseModel]) -> list[type[Section]]:
    nested = [f.annotation for f in model.model_fields.values()]
    found = [kind for kind in nested if isinstance(kind, type) and issubclass(kind, Section)]
    return found + [inner for kind in found for inner in sections_of(kind)]


def test_every_section_says_what_it_is() -> None:
    assert all(section.__doc__ for section in sections_of(Settings))


def test_result_settings_leave_out_what_changes_no_result() -> None:
    chosen = Settings().result_settings()
    assert "workers" not in chosen["prepare"]
    assert "checkpoint_seconds" not in chosen["train"]
    assert chosen["train"]["steps"] == Settings().train.steps


def test_choices_are_those_of_the_code() -> None:
    from fewstep.diffusion.grids import GRIDS
    from fewstep.diffusion.prediction import PREDICTIONS
    from fewstep.diffusion.schedule import SCHEDULES
    from fewstep.sampling.presets import PRESETS
    from fewstep.train.losses import WEIGHTINGS

    assert set(get_args(plain.PresetName)) == set(PRESETS)
    for grid in GRIDS:
        assert parse_params(raw(plans={"grids": [grid]})).runs["digits"].plans.grids == [grid]
    assert "plans.grids" in mistakes(raw(plans={"grids": ["cubic"]}))[0]
    for section, field, names in (
        (plain.ScheduleSettings, "type", SCHEDULES),
        (plain.ModelSettings, "prediction", PREDICTIONS),
        (plain.TrainSettings, "weighting", WEIGHTINGS),
    ):
        assert set(get_args(section.model_fields[field].annotation)) == set(names), field


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in DATASETS),
        ("lsun-bedroom", True),
        ("lsun-tv-monitor", True),
        ("lsun-church_outdoor", True),
        ("lsun-Cat.v2", True),
        *((name, False) for name in ("", "digit", "digits2", "folder\n", "lsun", "lsun-", "lsun- cat")),
        *((name, False) for name in ("lsun-../cat", "lsun-.cat", "lsun--", "LSUN-cat")),
    ],
)
def test_the_command_and_the_file_take_the_same_datasets(name: str, is_one: bool) -> None:
    try:
        in_file = parse_params(raw(prepare={"dataset": name, "source": "raw"}))
    except ConfigError as error:
        assert not is_one, error
    else:
        assert is_one and in_file.runs["digits"].prepare.dataset == name  # type: ignore[attr-defined]
    if is_one:
        assert callable(loader(name))
    else:
        with pytest.raises(
            ConfigError, match="dataset must be one of digits, cifar10, celeba, folder, lsun-"
        ):
            loader(name)


def test_what_admits_large_images_changes_a_dataset_and_no_measurement() -> None:
    chosen = Settings(prepare={"max_pixels": 10**9}, evaluate={"max_pixels": 10**9}).result_settings()
    assert chosen["prepare"]["max_pixels"] == 10**9  # with skip_corrupt more images are kept
    assert "max_pixels" not in chosen["evaluate"]


def test_reading_the_settings_imports_neither_torch_nor_a_workflow_tool() -> None:
    heavy = {"torch", "pandas", "matplotlib", "snakemake", "dvc", "mlflow", "optuna", "sklearn"}
    code = f"import sys, fewstep.app.keys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_only_objectives_that_need_no_images_are_let_through_with_the_zoo() -> None:
    for name, objective in OBJECTIVES.items():
        values: dict[str, Any] = {"nfe": [4], "objectives": [name]}
        assert AlignSettings(**values).reads_images == objective.reads_images
    assert not AlignSettings(objectives=["paper"]).reads_images
