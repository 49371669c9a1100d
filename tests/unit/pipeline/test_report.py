"""The report: what its page, its tables and the terminal say must be what the certificates say."""

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fewstep.checks import ConfigError, DataError
from fewstep.files import sha256_text, write_json
from fewstep.metrics.certificate import content_sha256
from fewstep.pipeline.report import build_report, print_leaderboard, read_results
from fewstep.pipeline.report.figures import spread
from fewstep.pipeline.report.results import (
    best_lines,
    calls_to_match,
    difference,
    distinguishable,
    family,
    number,
    reference_row,
    winners,
)
from fewstep.pipeline.samples import Samples, write_samples

METRIC = "FD-classifier#1k"
MODEL = sha256_text("model")


def certificate(
    sampler: str,
    grid: str | None,
    nfe: int,
    fd: float,
    *,
    half: float = 0.2,
    baseline: float | None = 1.0,
    kid: bool = True,
    pair: Sequence[float] | None = None,
) -> dict[str, Any]:
    name = f"{sampler}_{grid}_nfe{nfe:03d}"
    distance: dict[str, Any] = {
        "value": fd, "interval": [fd - half, fd + half], "level": 0.95, "interval_method": "half-sampling",
        "baseline": baseline, "mean_term": fd / 4, "trace_term": 3 * fd / 4,
    }  # fmt: skip
    if pair is not None:
        distance |= {"replicates": list(pair), "resample_seed": 3}
    results: dict[str, Any] = {METRIC: distance}
    if kid:
        results["KID-classifier#1k"] = {"value": fd / 1000 - 0.004, "interval": [-0.01, 0.01], "level": 0.95}
        results["precision-classifier#1k"] = {"value": 0.8125, "interval": [0.8, 0.83], "level": 0.95}
        results["recall-classifier#1k"] = {"value": 0.625, "interval": [0.6, 0.65], "level": 0.95}
    return {
        "schema": "fewstep.certificate/2",
        "subject": {
            "model": {"fingerprint": MODEL, "name": "tiny"},
            "plan": {
                "hash": sha256_text(name), "name": name, "sampler": sampler, "grid": grid, "nfe": nfe, "steps": {},
            },
            "draw": {"guidance": 1.0, "batch_size": 250},
            "data": {"name": "digits", "fingerprint": sha256_text("data")},
            "images_sha256": sha256_text(f"images of {name}"),
        },
        "protocol": {
            "preset": None,
            "n": 1000,
            "seeds": "0-999",
            "reference": {"name": "digits", "split": "train", "n": 1438, "sha256": sha256_text("reference")},
            "extractor": {
                "id": "classifier", "weights_sha256": sha256_text("w"), "resize": "none", "dtype": "float32",
            },
            "codec": "lossless",
            "quantisation": "floor(127.5x+128)",
            "ema": True,
            "dtype": "float32",
            "evaluation": {"metrics": ["fd", "kid", "pr"], "level": 0.95, "resamples": 100, "seed": 0},
        },
        "results": results,
        "costs": {
            "nfe": nfe, "network_calls": 4 * nfe, "network_ms_per_image": nfe / 8, "wall_seconds": nfe / 4,
            "device": "cpu",
        },
        "environment": {
            "fewstep": "0.1.0", "git_commit": None, "python": "3.11", "torch": "2.13", "numpy": "2.4",
            "platform": "Linux",
        },
        "files": {},
        "spec_key": None,
    }  # fmt: skip


STUDY = [
    certificate("ddim", "uniform-t", 5, 20.0),
    certificate("ddim", "uniform-t", 10, 9.0),
    certificate("ddim", "uniform-t", 50, 3.0),
    certificate("ddim", "karras", 10, 11.0),
    certificate("dpmpp-2m", "uniform-t", 5, 8.0),
    certificate("dpmpp-2m", "uniform-t", 10, 3.05),
    certificate("dpmpp-2m", "uniform-t", 50, 2.5),
    certificate("unipc-3", "uniform-lambda", 5, 12.0),
    certificate("unipc-3", "uniform-lambda", 10, 3.125),
]


def write_all(folder: Path, certificates: Sequence[dict[str, Any]] = STUDY) -> Path:
    for i, content in enumerate(certificates):
        write_json(folder / f"{i:02d}.json", {**content, "sha256": content_sha256(content)})
    return folder


def write_images(
    folder: Path, certificates: Sequence[dict[str, Any]] = STUDY, *, shape: Sequence[int] = (8, 8, 1)
) -> Path:
    folder.mkdir()
    for i, content in enumerate(certificates):
        plan = content["subject"]["plan"]
        images = np.random.default_rng(i).integers(0, 256, (6, *shape), dtype=np.uint8)
        meta = {"model": content["subject"]["model"], "plan_hash": plan["hash"], "nfe": plan["nfe"]}
        write_samples(folder / f"{plan['name']}.npz", Samples(images, np.arange(6), meta))
    return folder


class Page(HTMLParser):
    """What a test wants to know of a page: tables as lists of rows of text, addresses, ids, running text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images = 0
        self.words = ""
        self._rows: list[list[str]] | None = None
        self._cell = self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")]
        self.ids += [given["id"] or ""] if "id" in given else []
        self.images += tag == "img"
        self._raw = tag in ("style", "script")
        if tag == "table":
            self._rows = self.tables.setdefault(given["class"] or "", [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._cell = True
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        elif tag == "table":
            self._rows = None
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.words += data.replace("\u2011", "-")
        if self._cell and self._rows is not None:
            self._rows[-1][-1] += data


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
    assert "1 of 3 other plans cannot be told from it." in page.words
    assert "It needs 10 evaluations to match ddim at 50 (FD 3.00)." in page.words


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


def test_order_of_files_does_not_matter(tmp_path: Path) -> None:
    forward, backward = write_all(tmp_path / "a"), write_all(tmp_path / "b", STUDY[::-1])
    a, b = (read_results([folder]).frame.drop(columns="certificate") for folder in (forward, backward))
    pd.testing.assert_frame_equal(a, b)


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


def test_a_plan_has_one_certificate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 2"):
        read_results([write_all(tmp_path, [STUDY[0], STUDY[0]])])


def test_images_of_another_program_are_not_ranked(tmp_path: Path) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    other["subject"]["plan"] = None
    with pytest.raises(ConfigError, match="fewstep compare"):
        read_results([write_all(tmp_path, [other])])


def test_another_distance_is_refused(tmp_path: Path) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    other["results"]["FD-other#1k"] = other["results"].pop(METRIC)
    with pytest.raises(ConfigError, match="has no FD-classifier#1k"):
        read_results([write_all(tmp_path, [STUDY[0], other])])


def test_a_certificate_without_distance_is_refused(tmp_path: Path) -> None:
    other = certificate("ddim", "karras", 5, 3.0)
    del other["results"][METRIC]
    with pytest.raises(DataError, match="Fréchet"):
        read_results([write_all(tmp_path, [other])])


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(DataError, match="got none"):
        read_results([])


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


def test_nfe_with_one_sampler_has_no_runner_up(tmp_path: Path) -> None:
    results = read_results([write_all(tmp_path, [*STUDY, certificate("heun", "karras", 7, 5.0)])])
    entry = next(entry for entry in winners(results) if entry["nfe"] == 7)
    assert entry["runner_up"] is entry["lead"] is entry["ddim"] is entry["ratio"] is None
    assert entry["ties"] == 0


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


def test_paired_replicates_tell_apart_what_intervals_cannot(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, 100)
    close = [
        certificate("ddim", "uniform-t", 5, 3.1, half=1.0, pair=(noise + 0.1).tolist()),
        certificate("heun", "uniform-t", 5, 3.0, half=1.0, pair=(noise + 0.001 * noise**2).tolist()),
        certificate("ddpm", "uniform-t", 5, 3.1, half=1.0),
    ]
    heun, ddpm, ddim = (
        read_results([write_all(tmp_path, close)])
        .frame.sort_values("sampler", ascending=False)
        .to_dict("records")
    )
    assert distinguishable(ddim, heun)
    assert not distinguishable(ddpm, heun)  # no replicates: independent, +-1 each
    low, high = difference(ddpm, heun).interval
    assert (low + high) / 2 == pytest.approx(0.1)
    assert high - low == pytest.approx(2 * math.sqrt(2))


def test_reference_is_the_baseline_at_its_largest_nfe(tmp_path: Path) -> None:
    results = read_results([write_all(tmp_path)])
    reference = reference_row(results)
    assert (reference["sampler"], reference["nfe"]) == ("ddim", 50)
    best = results.at(10).iloc[0].to_dict()
    assert calls_to_match(results, best, reference) == 10
    assert calls_to_match(results, best, {"fd_high": 0.1}) is None


def test_a_line_does_not_win_by_being_measured_where_it_is_easy(tmp_path: Path) -> None:
    study = [*STUDY, certificate("dpmpp-3m", "karras", 50, 2.5)]
    lines = best_lines(read_results([write_all(tmp_path, study)]).frame, "family").set_index("family")
    assert lines.loc["dpmpp", "sampler"] == "dpmpp-2m"
    assert lines.index[0] == "dpmpp"


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        ("dpm-solver-2s", "dpm-solver"), ("dpmpp-3m-exact", "dpmpp"), ("unipc-2-bh1", "unipc"),
        ("ddim-eta", "ddim"), ("ddpm", "ddpm"), ("heun", "heun"),
    ],
)  # fmt: skip
def test_family(sampler: str, name: str) -> None:
    assert family(sampler) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.03123, "0.0312"), (3.125, "3.12"), (31.25, "31.2"), (312.4, "312"), (31241.0, "31241"), (0.0, "0"),
     (-0.0042, "-0.00420"), (math.nan, "–")],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([0.5], [0.5]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0], [0.0, 0.1]),
        ([1.0, 0.99], [1.0, 0.9]),
        ([0.3, 0.9, 0.32, 0.31], [0.21, 0.9, 0.41, 0.31]),
    ],
)
def test_labels_are_spread_as_little_as_needed(positions: list[float], expected: list[float]) -> None:
    assert spread(positions, gap=0.1) == pytest.approx(expected)


def test_terminal_table_without_a_terminal_is_plain_text(tmp_path: Path) -> None:
    stream = io.StringIO()
    print_leaderboard(read_results([write_all(tmp_path)]), top=2, stream=stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 3 * 2
    assert lines[0].split()[:4] == ["NFE", "#", "sampler", "grid"]
    assert lines[3].split()[:6] == ["10", "1", "dpmpp-2m", "uniform-t", "3.05", "[2.85,"]
    assert "=" in lines[4]
    assert "\x1b" not in stream.getvalue()


def test_terminal_table_for_people(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    print_leaderboard(read_results([write_all(tmp_path)]), nfe=10, stream=stream)
    assert "At 10 evaluations the best known sampler is dpmpp-2m" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_nfe_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5, 10, 50"):
        print_leaderboard(read_results([write_all(tmp_path)]), nfe=11, stream=io.StringIO())
