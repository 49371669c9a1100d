"""Spec keys cover everything a result depends on, and nothing else."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.checks import ConfigError, DataError
from fewstep.pipeline import specs
from fewstep.pipeline.config import (
    DataSettings,
    EvaluateSettings,
    Params,
    Settings,
    TrackingSettings,
    TrainSettings,
    load_params,
)
from fewstep.pipeline.specs import (
    RULES,
    applies,
    code_hash,
    leftovers,
    load_spec,
    make_spec,
    spec_path,
    stamp,
    sync_specs,
)

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "src" / "fewstep"
COMMANDS = {  # module in pipeline/commands -> rules whose commands it holds
    "data": ("prepare",),
    "model": ("train", "extractor"),
    "sampling": ("plans", "sample", "sample-searched", "sample-composed"),
    "search": ("teacher", "search"),
    "evaluation": ("stats", "evaluate", "evaluate-searched", "evaluate-composed"),
    "stepaware": ("stepaware",),
    "align": ("align",),
    "compose": ("compose",),
    "detect": ("detect",),
    "zoo": ("zoo", "zoo-stats"),
}
NO_RESULT_DEPENDS_ON = {
    "fewstep",
    "fewstep._typing",
    "fewstep.__main__",
    "fewstep.process",
    "fewstep.progress",
    "fewstep.pipeline",
    "fewstep.pipeline.config",
    "fewstep.pipeline.options",
    "fewstep.pipeline.specs",
    "fewstep.pipeline.environment",
    "fewstep.pipeline.devices",
    "fewstep.pipeline.commands",
    "fewstep.pipeline.tracking",  # shows results, live or afterwards
}


def key(rule: str, **sections: Any) -> str:
    sections = {**sections, "search": {"nfe": [5], **sections.get("search", {})}}
    return make_spec("digits", rule, Settings.model_validate(sections)).key


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
    changed = {"data": {"test_fraction": 0.5}}
    assert all(key(rule, **changed) != key(rule) for rule in RULES if not rule.startswith("zoo"))


ZOO = {
    "model": {"zoo": "cifar10-32-tiny"},
    "extractor": {"name": "effnet-lite0-p320"},
    "evaluate": {"metrics": ["fd"]},
}


def test_a_run_with_a_model_of_the_zoo_neither_prepares_nor_trains() -> None:
    settings = Settings.model_validate(ZOO)
    ours = {rule for rule in RULES if applies(rule, settings)}
    assert {"zoo", "zoo-stats", "plans", "sample", "evaluate", "report"} <= ours
    assert not {"prepare", "train", "extractor", "stats", "detect"} & ours
    assert "zoo" in make_spec("digits", "plans", settings).upstream
    assert key("plans", **ZOO) == key("plans", **ZOO, data={"test_fraction": 0.5})


def test_another_model_in_the_zoo_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key("plans", **ZOO)
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo")
    monkeypatch.setenv("FEWSTEP_ZOO", str(tmp_path / "zoo"))
    assert key("plans", **ZOO) == before
    sums = tmp_path / "zoo" / "cifar10-32-tiny" / "zoo.json"
    sums.write_text(sums.read_text().replace('"licence"', '"licence" '))
    assert key("plans", **ZOO) != before


def test_swapped_values_are_a_change() -> None:
    assert key("train", train={"steps": 5, "warmup": 6}) != key("train", train={"steps": 6, "warmup": 5})


CHANGES: dict[str, Any] = {  # for fields whose other values do not follow from their type
    "data.dataset": {"dataset": "cifar10", "source": "x"},
    "data.name": {"name": "x"},
    "data.source": {"source": "x"},
    "data.size": {"size": 16},
    "data.limit": {"limit": 50},
    "model.zoo": None,  # needs a second field; below
    "model.schedule": {"schedule": {"type": "flow"}},
    "model.prediction": {"prediction": "v"},
    "model.widths": {"widths": [1.0, 0.5]},
    "train.weighting": {"weighting": "snr"},
    "train.lr_course": {"lr_course": "constant"},
    "train.precision": {"precision": "bf16"},
    "extractor.name": {"name": "inception2015"},
    "stats.split": {"split": "test"},
    "plans.presets": {"presets": ["ddim"]},
    "plans.grids": {"grids": ["karras"]},
    "search.sampler": {"sampler": "tpe"},
    "search.max_order": {"max_order": 2},
    "align.nfe": {"nfe": [5]},
    "stepaware.nfe": None,  # needs a second field; below
    "align.objectives": {"objectives": ["denoise"]},
    "align.optimiser": {"optimiser": "adam"},
    "stepaware.cost": {"cost": "ms"},
    "evaluate.metrics": {"metrics": ["fd"]},
    "evaluate.resamples": {"resamples": 50},
    "detect.nfe": {"nfe": [5]},
    "detect.match": {"match": ["ddim*"]},
    "detect.classifiers": {"classifiers": ["forest"]},
    "tracking.uri": {"uri": "x"},
    "sample.guidance": None,  # needs a second field; below
}


def changed_value(section: str, field: str, value: Any) -> dict[str, Any] | None:
    if f"{section}.{field}" in CHANGES:
        return CHANGES[f"{section}.{field}"]
    if isinstance(value, bool):
        return {field: not value}
    if isinstance(value, list):
        return {field: [*value, 7]}
    if isinstance(value, int):
        return {field: value + (8 if field == "channels" else 1)}
    return {field: value * 0.9 + 0.01}


def test_every_setting_that_can_change_a_result_is_in_some_key() -> None:
    before = {rule: key(rule) for rule in RULES}
    for section, fields in Settings().result_settings().items():
        for field, value in fields.items():
            change = changed_value(section, field, value)
            if change is not None:
                after = {rule: key(rule, **{section: change}) for rule in RULES}
                assert after != before, f"no rule depends on {section}.{field}"
    slim = {"model": {"widths": [1.0, 0.5]}}
    assert key("compose", **slim, stepaware={"nfe": [5]}) != key("compose", **slim)
    assert key("plans", **ZOO) != key("plans")
    conditional = {"model": {"class_conditional": True}}
    assert key("sample", **conditional, sample={"guidance": 2.0}) != key("sample", **conditional)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("data", {"workers": 7}),
        ("train", {"checkpoint_seconds": 7.0}),
        ("sample", {"batch_size": 7, "shards": 3}),
        ("evaluate", {"shards": 3}),
        ("tracking", {"live": True}),
    ],
)
def test_settings_of_speed_are_in_no_key(section: str, change: dict[str, Any]) -> None:
    assert {rule: key(rule, **{section: change}) for rule in RULES} == {rule: key(rule) for rule in RULES}


def test_each_number_of_calls_stands_alone() -> None:
    fewer = {"plans": {"nfe": [4]}}
    assert key("evaluate", **fewer) == key("evaluate")
    assert key("report", **fewer) != key("report")


def test_a_published_extractor_does_not_depend_on_the_training_of_one() -> None:
    published = make_spec(
        "digits", "stats", Settings.model_validate({"extractor": {"name": "inception2015"}})
    )
    assert set(published.upstream) == {"prepare"}
    assert set(make_spec("digits", "stats", Settings()).upstream) == {"prepare", "extractor"}


def test_the_hash_that_dvc_recorded_of_raw_data_counts(folder: Path) -> None:
    raw = {"data": {"dataset": "cifar10", "source": "raw/c.tar.gz"}}
    (folder / "raw").mkdir()
    without = key("prepare", **raw)
    record = folder / "raw" / "c.tar.gz.dvc"
    record.write_text("outs:\n- md5: 0123456789abcdef\n  size: 3\n  path: c.tar.gz\n")
    first = key("prepare", **raw)
    record.write_text("outs:\n- md5: fedcba9876543210\n  size: 3\n  path: c.tar.gz\n")
    assert len({without, first, key("prepare", **raw)}) == 3


def test_code_counts_but_its_comments_do_not(tmp_path: Path) -> None:
    def hashed(name: str, text: str) -> str:
        package = tmp_path / name
        package.mkdir()
        (package / "a.py").write_text(text)
        return code_hash(("a.py",), package)

    plain = hashed("0", "def f(x):\n    return x + 1\n")
    assert (
        hashed("1", '"""Doc."""\n# why\ndef f(x: int) -> int:\n    """Doc."""\n    return (x + 1)\n') == plain
    )
    assert hashed("2", "def f(x):\n    return x + 2\n") != plain
    assert hashed("3", "def g(x):\n    return x + 1\n") != plain


def test_a_folder_of_code_is_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\n")
    before = code_hash(("room",), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "room").mkdir()
    (tmp_path / "other" / "room" / "a.py").write_text("x = 1\n")
    (tmp_path / "other" / "room" / "page.css").write_text("p {}\n")
    assert code_hash(("room",), tmp_path / "other") != before


def imports_of(file: Path) -> Iterator[str]:
    """Modules of the package that a module names anywhere, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "fewstep")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fewstep":
            assert node.module is not None
            yield node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if file_of(inner):
                    yield inner


def file_of(module: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.exists():
            return file
    return None


def closure(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = file_of(name)
        if name in found or file is None or (name in NO_RESULT_DEPENDS_ON and name != module):
            continue
        found.add(name)
        waiting += imports_of(file)
    return found


@pytest.mark.parametrize("module", COMMANDS)
def test_a_key_covers_all_code_that_the_command_imports(module: str) -> None:
    used = closure(f"fewstep.pipeline.commands.{module}")
    for rule in COMMANDS[module]:
        listed = [PACKAGE / name for name in RULES[rule].code]
        missing = [
            name
            for name in sorted(used)
            if not any((file := file_of(name)) == path or (file and path in file.parents) for path in listed)
        ]
        assert not missing, f"RULES[{rule!r}].code lacks {missing}"


def test_every_listed_module_exists() -> None:
    for rule, depends in RULES.items():
        for name in depends.code:
            assert (PACKAGE / name).exists(), f"{rule}: {name}"


def test_a_spec_is_read_back_and_gives_typed_sections(folder: Path) -> None:
    sync_specs(params(train={"steps": 7}))
    spec = load_spec(spec_path("digits", "train"))
    assert spec.section(TrainSettings).steps == 7
    assert spec.section(TrackingSettings) == TrackingSettings()
    with pytest.raises(ConfigError, match="must hold data settings, got the spec of rule train"):
        spec.section(DataSettings)


def test_a_stamp_holds_the_key(folder: Path) -> None:
    spec = make_spec("digits", "train", Settings())
    content = json.loads(stamp(spec, folder).read_text())
    assert content["spec_key"] == content["key"] == spec.key
    assert content["settings"]["train"]["steps"] == Settings().train.steps


def test_a_spec_for_other_code_is_refused(folder: Path) -> None:
    sync_specs(params())
    path = spec_path("digits", "train")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "code": "0" * 16}))
    with pytest.raises(ConfigError, match="the code of rule train must be the code that .* was written for"):
        load_spec(path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "fewstep.spec/1"}', "{"])
def test_what_is_not_a_spec_is_refused(folder: Path, text: str) -> None:
    (folder / "spec.json").write_text(text)
    with pytest.raises(DataError, match="spec.json"):
        load_spec(folder / "spec.json")


def test_a_section_that_is_no_longer_valid_is_one_sentence(folder: Path) -> None:
    sync_specs(params())
    path = spec_path("digits", "evaluate")
    content = json.loads(path.read_text())
    content["settings"]["evaluate"]["level"] = 7.0
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="evaluate settings of the spec for digits/evaluate must be valid"):
        load_spec(path).section(EvaluateSettings)


def result(folder: Path, *, nfe: int, spec_key: str, mtime: float) -> Path:
    path = folder / "results" / "digits" / "eval" / f"nfe{nfe}" / "spec.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"spec_key": spec_key}))
    os.utime(path, (mtime, mtime))
    return path


def test_the_date_of_a_spec_says_whether_results_fit(folder: Path) -> None:
    both = {"plans": {"nfe": [4, 8]}}
    fits = key("evaluate", **both)
    path = spec_path("digits", "evaluate")

    old = result(folder, nfe=4, spec_key=fits, mtime=1e9)
    sync_specs(params(**both))
    assert path.stat().st_mtime < old.stat().st_mtime, "all that exists fits: never a reason to run"

    other = result(folder, nfe=8, spec_key="other", mtime=1.1e9)
    sync_specs(params(**both))
    renewed = path.stat().st_mtime
    assert renewed > other.stat().st_mtime, "what does not fit is older than its spec"

    serial = json.loads(path.read_text())["serial"]
    fresh = result(folder, nfe=4, spec_key=fits, mtime=renewed + 1)
    sync_specs(params(**both))
    assert path.stat().st_mtime == renewed < fresh.stat().st_mtime, "half done: what is done stays done"
    assert json.loads(path.read_text())["serial"] != serial, "another checksum than any that was recorded"

    result(folder, nfe=8, spec_key=fits, mtime=renewed + 2)
    sync_specs(params(**both))
    assert path.stat().st_mtime < old.stat().st_mtime


def test_a_result_with_a_future_date_and_no_fit_is_still_seen(folder: Path) -> None:
    path = spec_path("digits", "evaluate")
    sync_specs(params())
    first = json.loads(path.read_text())
    result(folder, nfe=4, spec_key="other", mtime=path.stat().st_mtime)
    sync_specs(params())
    assert json.loads(path.read_text())["serial"] != first["serial"], (
        "the content differs for checksum comparisons"
    )


def test_leftovers_of_removed_settings_do_not_count(folder: Path) -> None:
    result(folder, nfe=50, spec_key="other", mtime=1e9)
    sync_specs(params(plans={"nfe": [4]}))
    assert spec_path("digits", "evaluate").stat().st_mtime < 1e9


def test_leftovers_are_what_the_settings_do_not_ask_for(folder: Path) -> None:
    run = folder / "results" / "digits"
    for place in (
        "data",
        "model",
        "reference/extractor",
        "eval/nfe4",
        "eval/nfe8",
        "plans/nfe8",
        "eval/.nfe4.x",
    ):
        (run / place).mkdir(parents=True)
    (folder / "results" / "other" / "eval" / "nfe8").mkdir(parents=True)
    settings = Settings.model_validate({"plans": {"nfe": [4]}})
    assert leftovers("digits", settings) == [
        Path("results/digits", place) for place in ("eval/.nfe4.x", "eval/nfe8", "plans/nfe8")
    ]
    published = Settings.model_validate({"plans": {"nfe": [4, 8]}, "extractor": {"name": "inception2015"}})
    assert leftovers("digits", published) == [
        Path("results/digits", place) for place in ("eval/.nfe4.x", "reference/extractor")
    ]


def test_a_torn_spec_is_replaced(folder: Path) -> None:
    path = spec_path("digits", "train")
    path.parent.mkdir(parents=True)
    path.write_text('{"key": ')
    sync_specs(params())
    assert load_spec(path).key == key("train")


def test_the_lock_admits_one_process_and_ends_with_it(folder: Path) -> None:
    code = "import sys, fewstep.pipeline.specs as s; print(*s.acquire_lock(s.Path('run.lock')))"
    handle, holder = specs.acquire_lock(Path("run.lock"))
    assert handle is not None
    assert holder == ""

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return done.stdout

    assert other() == f"None process {os.getpid()}\n"
    handle.close()
    assert other().startswith("<")


def test_dvc_stages_depend_on_all_settings_of_their_rules() -> None:
    """A change that Snakemake acts on must also make DVC run the stage, or an earlier one."""
    ours = [rule for rule in RULES if not rule.startswith("zoo")]  # git has those files
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    rules_of = {
        "data": ("prepare",),
        "model": ("train",),
        "report": tuple(rule for rule in ours if rule not in ("prepare", "train")),
    }
    assert set(stages) == set(rules_of)
    assert sorted(rule for rules in rules_of.values() for rule in rules) == sorted(ours)
    for name, stage in stages.items():
        stated = {entry.removeprefix("defaults.") for entry in stage["do"]["params"] if "defaults." in entry}
        read = {setting.split(".")[0] for rule in rules_of[name] for setting in RULES[rule].reads}
        assert read - {"tracking"} <= stated, name
        assert "runs.${item}" in stage["do"]["params"]
        assert {"src/fewstep", "Snakefile", "workflow/rules"} <= set(stage["do"]["deps"])
        outs = [next(iter(out)) for out in stage["do"]["outs"]]
        for rule in rules_of[name]:
            place = RULES[rule].results.replace("{run}", "${item}")
            if place.startswith("results/"):
                assert any(place.startswith(out) for out in outs), rule
    assert "defaults.tracking" in stages["report"]["do"]["params"]


def test_the_module_is_found_where_the_package_is() -> None:
    found = importlib.util.find_spec("fewstep")
    assert found is not None
    assert code_hash(("checks.py",)) == code_hash(("checks.py",), PACKAGE)
    assert load_params(ROOT / "params.yaml").runs
