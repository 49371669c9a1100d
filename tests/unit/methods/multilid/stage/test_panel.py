"""What the report shows of a finished detection."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from unit.app.report.study import MODEL, STUDY, Page, write_all

from fewstep.app.report.build import Shown, build_report
from fewstep.checks import ConfigError, DataError
from fewstep.methods.multilid.protocol import NULL, REAL
from fewstep.methods.multilid.stage.panel import panel
from fewstep.methods.multilid.stage.record import FAIR, POOLED, PUBLISHED, SCHEMA, Detection
from fewstep.pipeline.report.results import read_results

SHOWN = partial(Shown, "detect", "fewstep.methods.multilid.stage.panel")

PLANS = [content["subject"]["plan"] for content in STUDY[:5]]
NETWORK, PLAIN = "taps", "taps-random"
HEAD = {"network": NETWORK, "features": "multilid", "protocol": FAIR, "classifier": "logistic"}


def row(generator: str, accuracy: float, **key: str) -> dict[str, Any]:
    values = {"accuracy": accuracy, "auroc": accuracy, "tpr": accuracy, "accuracy_minus_null": accuracy - 0.5}
    values |= {"auroc_minus_null": accuracy - 0.5, "null_accuracy": 0.5, "null_auroc": 0.5}
    bounds = {f"{name}_{end}": value for name, value in values.items() for end in ("low", "high")}
    return {**HEAD, **key, "generator": generator, **values, **bounds}


def detection(*, model: str = MODEL) -> Detection:
    """Five plans, the first the easiest, and a published protocol that leaks."""
    names = [plan["name"] for plan in PLANS]
    accuracies = [0.9, 0.8, 0.7, 0.6, 0.55]
    rows = [row(name, value) for name, value in zip(names, accuracies, strict=True)]
    rows += [
        row(names[0], 0.75, features="multilid", network=PLAIN),
        row(names[0], 0.65, features=POOLED, network="pool"),
        row(names[0], 0.97, protocol=PUBLISHED),
        row(NULL, 0.85, protocol=PUBLISHED),
        row(NULL, 0.5),
    ]
    classes = [REAL, *names]
    record = {
        "schema": SCHEMA,
        "protocol": {
            "headline": HEAD, "images": 50, "k": 5, "folds": 5, "repeats": 1, "level": 0.95, "intervals": "Wilson",
            "same_levels": True, "networks": [{"id": NETWORK, "layers": ["a", "b"]}, {"id": PLAIN}],
        },
        "data": {
            "name": "digits", "n_bank": 20, "n_real": 50, "n_null": 50, "levels": 17, "trained_on": 0.802,
            "equal_to_bank": {REAL: 2, NULL: 0},
        },
        "generators": [
            {
                "name": plan["name"], "plan_hash": plan["hash"], "sampler": plan["sampler"], "nfe": plan["nfe"],
                "model": model, "equal_to_bank": 0,
            }
            for plan in PLANS
        ],
        "identification": {
            "classes": classes, "accuracy": {"value": 0.4}, "chance": 1 / 6,
            "confusion": [[1 / 6] * 6] * 6,
        },
        "extremes": {
            "easiest": {"name": names[0], "not_distinguishable_from": []},
            "hardest": {"name": names[-1], "not_distinguishable_from": [names[-2]]},
        },
    }  # fmt: skip
    return Detection(record, pd.DataFrame(rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "detection").mkdir()
    detection().save(tmp_path / "detection")
    return tmp_path / "detection"


def test_a_detection_is_a_section_of_the_page(folder: Path, tmp_path: Path) -> None:
    certificates = write_all(tmp_path / "c")
    build_report(
        [certificates],
        [],
        tmp_path / "out",
        run="r",
        panels=[SHOWN([folder])],
    )
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "Easiest to distinguish from real images is ddim_uniform-t_nfe005, 40.0 points" in page.words
    assert f"not distinguishable from {PLANS[3]['name']};" in page.words
    assert "40.0 % of all images are assigned to their own; chance is 16.7 %." in page.words
    assert "Over 5 plans the rank correlation of AUROC and FD is" in page.words
    first = page.tables["plain"][1]
    assert first == [
        "ddim_uniform-t_nfe005", "20.0", "90.0", "50.0", "40.0 [40.0, 40.0]", "0.900", "90.0", "90.0", "–", "65.0",
        "75.0", "97.0",
    ]  # fmt: skip
    assert "85.0 [85.0, 85.0] % of cases through taps (logistic)." in page.words
    assert "trained on 80.2 % of all images of digits" in page.words
    assert "real 2" in page.words
    for plan in PLANS:
        assert f'id="detect-distance-point-accuracy-{plan["hash"]}"' in text
    figures = {path.name for path in (tmp_path / "out" / "figures" / "detect").iterdir()}
    assert figures == {f"{name}.{kind}" for name in ("distance", "confusion") for kind in ("png", "svg")}
    assert len(page.ids) == len(set(page.ids))


def test_without_certificates_of_its_plans_there_is_no_distance_to_draw(folder: Path, tmp_path: Path) -> None:
    made = panel([folder], read_results([write_all(tmp_path / "c", STUDY[5:])]))
    assert set(made.figures) == {"confusion"}
    assert "by the Fréchet distance of that plan" not in made.html


def test_samples_of_another_model_are_refused(tmp_path: Path) -> None:
    detection(model="0" * 64).save(tmp_path)
    with pytest.raises(DataError, match="must be of samples of the certified model"):
        panel([tmp_path], read_results([write_all(tmp_path / "c")]))


def test_two_detections_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one detection"):
        panel([folder, folder], read_results([write_all(tmp_path / "c")]))
