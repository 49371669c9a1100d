"""The report: what its page and its tables say must be what the certificates say."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from unit.app.report.study import METRIC, MODEL, STUDY, Page, certificate, write_all, write_images

from fewstep.app.report.build import build_report
from fewstep.checks import ConfigError, DataError
from fewstep.files import sha256_text, write_json
from fewstep.pipeline.report.numbers import number


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_json(folder / "card.json", {"name": "tiny", "training": {"steps": 300}})
    lines = [{"step": 0, "seconds": 0.1}, *({"step": s, "loss": 1 / s} for s in range(10, 310, 10))]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    build_report(
        [write_all(folder / "certificates")],
        [write_images(folder / "samples")],
        folder / "out",
        run="digits",
        card=folder / "card.json",
        training=folder / "metrics.jsonl",
    )
    return folder / "out"


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text(encoding="utf-8"))


def test_folder_holds_page_tables_and_figures(report: Path) -> None:
    figures = {path.name for path in (report / "figures").iterdir()}
    names = {"fd_vs_nfe", "fd_vs_ms", "training", "samples_nfe005", "samples_nfe010", "samples_nfe050"}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in report.iterdir()} == {
        "index.html", "leaderboard.csv", "metrics.json", "figures"
    }  # fmt: skip


def test_leaderboard_rows_are_the_certificates(page: Page) -> None:
    head, *rows = page.tables["board"]
    assert len(rows) == len(STUDY)
    shown = {(row[2], row[3], int(row[0])): row for row in rows}
    for content in STUDY:
        plan, distance = content["subject"]["plan"], content["results"][METRIC]
        row = shown[plan["sampler"], plan["grid"], plan["nfe"]]
        assert row[head.index("FD")] == number(distance["value"])
        assert row[head.index("interval")] == "[{}, {}]".format(*map(number, distance["interval"]))
        assert float(row[head.index("KID ×10³")]) == pytest.approx(distance["value"] - 4, rel=5e-3)
        assert row[head.index("precision %")] == "81.2"
        assert row[head.index("recall %")] == "62.5"
        assert row[head.index("ms / image")] == number(content["costs"]["network_ms_per_image"])
        assert row[head.index("calls")] == str(content["costs"]["network_calls"])


def test_csv_has_full_precision(report: Path) -> None:
    table = pd.read_csv(report / "leaderboard.csv").set_index("plan_hash")
    assert len(table) == len(STUDY)
    for content in STUDY:
        row, distance = table.loc[content["subject"]["plan"]["hash"]], content["results"][METRIC]
        assert [row["fd"], row["fd_low"], row["fd_high"]] == [distance["value"], *distance["interval"]]
        assert row["calls"] == content["costs"]["network_calls"]


def test_ranks_count_from_one_within_each_nfe(report: Path) -> None:
    table = pd.read_csv(report / "leaderboard.csv")
    for _, rows in table.groupby("nfe"):
        assert rows.sort_values("fd")["rank"].tolist() == list(range(1, len(rows) + 1))


def test_metrics_are_flat_and_name_the_best(report: Path) -> None:
    metrics = json.loads((report / "metrics.json").read_text())
    assert all(not isinstance(value, dict | list) for value in metrics.values())
    assert metrics["nfe010.best"] == "dpmpp-2m"
    assert metrics["nfe010.fd"] == 3.05
    assert metrics["nfe010.fd_ddim"] == 9.0
    assert metrics["fd.real"] == 1.0


def test_headline_answers_the_question(page: Page) -> None:
    assert (
        "At 10 evaluations the best known sampler is dpmpp-2m on uniform-t: FD 3.05 [2.85, 3.25]."
        in page.words
    )
    assert "1 of 3 other plans is not distinguishable from it." in page.words
    assert "FD of ddim at 50 is 3.00 [2.80, 3.20]." in page.words


def test_winners_table(page: Page) -> None:
    rows = {row[0]: row for row in page.tables["winners"][1:]}
    assert list(rows) == ["5", "10", "50"]
    assert rows["5"][1:3] == ["dpmpp-2m uniform-t", "8.00 [7.80, 8.20]"]
    assert rows["5"][3] == "unipc-3 uniform-lambda"
    assert rows["5"][5:] == ["yes", "0.40×"]
    assert rows["10"][5:] == ["tie with 1 of 3", "0.34×"]


def test_matrix_has_a_cell_per_nfe_and_a_dash_for_what_was_not_run(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.tables["matrix"][1:]}
    assert rows["unipc-3 uniform-lambda"] == ["12.0", "3.12", "–"]
    assert rows["ddim uniform-t"] == ["20.0", "9.00", "3.00"]


def test_page_loads_nothing(page: Page, report: Path) -> None:
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    text = (report / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|//[a-z]+\.|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))


def test_every_point_says_its_values(report: Path) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    low, high = map(number, STUDY[-1]["results"][METRIC]["interval"])
    title = f"unipc-3 on uniform-lambda, NFE 10: FD 3.12 [{low}, {high}], 1.25 ms per image"
    assert f"<title>{title}</title>" in text
    assert text.count('class="point"') == 2 * len(STUDY)


def test_sample_strips_are_the_best_grid_of_every_sampler(page: Page) -> None:
    # Three samplers at 5 and 10, two at 50, and the many-step reference; ddim on karras loses to uniform-t.
    assert page.images == 3 + 3 + 2 + 1
    assert "Columns are seeds 0 to 5." in page.words


def test_protocol_card_and_training_are_told(page: Page) -> None:
    for fact in ("reference.split", "classifier", "training.steps", "300", MODEL, "tiny", "running median"):
        assert fact in page.words


def test_fd_is_never_called_fid(page: Page) -> None:
    assert re.findall(r"[^.]*\bFID\b[^.]*", page.words.replace("FD is not FID", "")) == []


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    certificates, samples = write_all(tmp_path / "c"), write_images(tmp_path / "s")

    def digests(out: Path) -> dict[str, str]:
        build_report([certificates], [samples], out, run="digits")
        files = sorted(path for path in out.rglob("*") if path.is_file())
        return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    first = digests(tmp_path / "out")
    (tmp_path / "out" / "stray.csv").touch()
    assert digests(tmp_path / "out") == first  # and the older report is replaced as a whole


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c["protocol"].update(n=5000), "protocol.n is"),
        (lambda c: c["protocol"]["reference"].update(split="test"), "protocol.reference.split"),
        (lambda c: c["subject"]["model"].update(name="other"), "model is"),
        (lambda c: c["subject"]["data"].update(name="other"), "data is"),
    ],
)
def test_different_protocols_are_not_ranked(tmp_path: Path, change: Any, field: str) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    change(other)
    with pytest.raises(ConfigError, match=re.escape(field)):
        build_report([write_all(tmp_path / "c", [STUDY[0], other])], [], tmp_path / "out", run="r")
    assert not (tmp_path / "out").exists()


def test_one_bare_certificate(tmp_path: Path) -> None:
    """No baseline, no KID, no interval, no DDIM, no samples, no card."""
    bare = certificate("heun", None, 7, 5.0, baseline=None, kid=False)
    del bare["results"][METRIC]["interval"]
    results = build_report([write_all(tmp_path / "c", [bare])], [], tmp_path / "out", run="r")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "At 7 evaluations there is one sampler, heun on own: FD 5.00." in page.words
    assert "KID" not in page.tables["board"][0]
    assert "real against real" not in text
    assert "matrix" not in page.tables
    assert 'role="tablist"' not in text
    assert "nan" not in page.words.lower()
    assert math.isnan(results.baseline)
    assert "fd.real" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_missing_measurement_of_one_row_is_a_dash(tmp_path: Path) -> None:
    mixed = [STUDY[0], certificate("heun", "karras", 5, 5.0, kid=False)]
    build_report([write_all(tmp_path / "c", mixed)], [], tmp_path / "out", run="r")
    rows = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8")).tables["board"]
    assert rows[1][2] == "heun"
    assert rows[1][6:9] == ["–", "–", "–"]


def test_zero_distance_and_zero_time_are_drawn_around(tmp_path: Path) -> None:
    exact = certificate("heun", "karras", 5, 0.0, half=0.0)
    exact["costs"]["network_ms_per_image"] = 0.0
    build_report([write_all(tmp_path / "alone", [exact])], [], tmp_path / "out", run="r")
    build_report([write_all(tmp_path / "c", [*STUDY, exact])], [], tmp_path / "out", run="r")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["nfe005.best"] == "heun"


def test_names_are_escaped(tmp_path: Path) -> None:
    odd = certificate('a<b>&"c"', "uniform-t", 5, 5.0)
    build_report([write_all(tmp_path / "c", [odd, STUDY[0]])], [], tmp_path / "out", run="<script>x</script>")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<b>&" not in text
    assert "<script>x" not in text


def test_samples_of_another_model_are_refused(tmp_path: Path) -> None:
    other = certificate("ddim", "uniform-t", 5, 20.0)
    other["subject"]["model"]["fingerprint"] = sha256_text("other")
    with pytest.raises(DataError, match="certified model"):
        build_report(
            [write_all(tmp_path / "c")], [write_images(tmp_path / "s", [other])], tmp_path / "out", run="r"
        )


def test_damaged_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match=r"x\.npz must be a file of samples"):
        build_report([write_all(tmp_path / "c")], [tmp_path / "x.npz"], tmp_path / "out", run="r")


def test_images_of_prompts_stand_beside_their_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("two grey cups\na bridge <in fog>\n")
    samples = write_images(tmp_path / "s", STUDY[:4], shape=(96, 80, 3), prompts=prompts)
    certificates = write_all(tmp_path / "c", STUDY[:4])
    build_report([certificates], [samples], tmp_path / "out", run="r")
    page = Page((tmp_path / "out/index.html").read_text())
    head, *rows = page.tables["prompts"]
    assert [row[0] for row in rows[:6]] == ["two grey cups", "a bridge <in fog>"] * 3, (
        "seed s has prompt s mod 2"
    )
    assert head == ["prompt", "ddim uniform-tNFE 50, FD 3.00", "ddim uniform-tNFE 5, FD 20.0"]
    assert page.images == 6 * (2 + 2 + 2), "the reference beside the best plan of 5, 10 and 50 calls"
    assert (tmp_path / "out/figures/samples_nfe005.png").stat().st_size > 0
    prompts.write_text("others\n")
    build_report([certificates], [samples], tmp_path / "changed", run="r")
    changed = Page((tmp_path / "changed/index.html").read_text())
    assert "prompts" not in changed.tables, "a list that was changed is not shown beside images of another"
    assert changed.images


def test_some_samples_missing_and_large_colour_images(tmp_path: Path) -> None:
    samples = write_images(tmp_path / "s", STUDY[4:6], shape=(96, 80, 3))
    build_report([write_all(tmp_path / "c")], [samples], tmp_path / "out", run="r")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert Page(text).images == 2
    assert 'height="64"' in text
    assert len(text) < 5_000_000


@pytest.mark.parametrize("content", ["{}", "not json", '{"step": 1}', '{"loss": 1}'])
def test_training_log_without_losses_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"m\.jsonl must"):
        build_report(
            [write_all(tmp_path / "c")], [], tmp_path / "out", run="r", training=tmp_path / "m.jsonl"
        )
