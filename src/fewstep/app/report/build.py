"""From certificates and samples to the folder of a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.app.report.page import Background, Samples, Strips, render, render_panels
from fewstep.checks import ConfigError, DataError
from fewstep.files import atomic_dir, read_json, write_json
from fewstep.pipeline.report import figures
from fewstep.pipeline.report.images import SampleFile, read_sample_files, shared_prompts, shared_seeds, strip
from fewstep.pipeline.report.numbers import number
from fewstep.pipeline.report.panel import Panel
from fewstep.pipeline.report.results import Results, flat_metrics, read_results, reference_row

STRIP_ROWS = 10


@dataclass(frozen=True)
class Shown:
    """Results of a stage, and the module whose `panel` shows them."""

    stage: str
    module: str
    folders: Sequence[Path]


def build_report(
    certificates: Sequence[Path],
    samples: Sequence[Path],
    out: Path,
    *,
    run: str,
    card: Path | None = None,
    training: Path | None = None,
    panels: Sequence[Shown] = (),
) -> Results:
    """Write the report of a run: the page, the tables and the figures, all or nothing.

    The folder holds `index.html` (nothing else is needed to read it), `leaderboard.csv`, `metrics.json`
    (flat, for `dvc metrics`) and `figures/` with `fd_vs_nfe`, `fd_vs_ms`, `samples_nfe<N>` and `training` as PNG and
    SVG, as far as there is data for them; the figures of a panel stand in a folder of the stage's name in there.
    The same inputs give the same bytes.

    Args:
        certificates: Files, or folders that hold them.
        samples: npz files that the certificates are about, or folders that hold them; may be empty.
        out: The folder to write; an older one of that name is replaced.
        run: Name of the run, for the title.
        card: `card.json` of the model.
        training: `metrics.jsonl` of its training.
        panels: Results of stages to show, in this order.

    Returns:
        The table behind the report.

    Raises:
        ConfigError: The certificates differ in protocol, model or data, or in what they say of one plan, or a panel
            cannot be made.
        DataError: A file is missing or damaged, or samples or results of a stage come from another model.
    """
    results = read_results(certificates)
    background = Background(
        card=None if card is None else _mapping(card),
        training=None if training is None else read_training(training),
    )
    gallery = collect_samples(results, read_sample_files(samples))
    made: dict[str, Panel | None] = {
        one.stage: import_module(one.module).panel(one.folders, results) for one in panels
    }
    shown = {stage: panel for stage, panel in made.items() if panel is not None}
    page = render(results, run=run, samples=gallery, background=background, panels=shown)
    with atomic_dir(out) as folder:
        _save_page(folder, page, flat_metrics(results), shown)
        results.frame.drop(columns="resampling").to_csv(
            folder / "leaderboard.csv", index=False, lineterminator="\n"
        )
        _save_figures(results, gallery, background, folder / "figures")
    return results


def build_panels(out: Path, *, run: str, panels: Sequence[Shown]) -> None:
    """Write the report of a run that has no plans of its own: `index.html`, `metrics.json` and the panels' figures.

    Args: as of `build_report`.

    Raises:
        ConfigError: a panel has nothing to show.
        DataError: results of a stage are missing or damaged.
    """
    made: dict[str, Panel | None] = {
        one.stage: import_module(one.module).panel(one.folders, None) for one in panels
    }
    shown = {stage: panel for stage, panel in made.items() if panel is not None}
    if not shown:
        raise ConfigError("A report must have certificates or panels to show, got none; name some.")
    with atomic_dir(out) as folder:
        _save_page(folder, render_panels(run=run, panels=shown), {}, shown)


def _save_page(folder: Path, page: str, numbers: Mapping[str, Any], panels: Mapping[str, Panel]) -> None:
    (folder / "index.html").write_text(page, encoding="utf-8")
    for panel in panels.values():
        numbers = {**numbers, **panel.metrics}
    write_json(folder / "metrics.json", numbers)
    (folder / "figures").mkdir()
    for stage, panel in panels.items():
        if panel.figures:
            (folder / "figures" / stage).mkdir()
        for name, figure in panel.figures.items():
            figures.save(figure, folder / "figures" / stage / name)


def read_training(path: Path) -> pd.DataFrame:
    """Columns step and loss of a training log; lines without both (validation, timing) are left out.

    Raises:
        DataError: The file is missing, is not one JSON object per line, or no line has step and loss.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        log = pd.DataFrame([{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be a training log of JSON lines, but {error!r} came up.") from error
    if log.empty:
        raise DataError(f"{path} must have lines with step and loss, got none; train first.")
    return log.dropna().sort_values("step", ignore_index=True)


def collect_samples(results: Results, files: dict[str, SampleFile]) -> Samples:
    """For every NFE the best plan of every sampler that has samples, on the seeds that all files share.

    Raises:
        DataError: A file holds samples of these plans, but from another model.
    """
    reference = reference_row(results)
    chosen: dict[int, list[dict[str, Any]]] = {}
    for nfe in results.steps:
        rows = results.at(nfe).drop_duplicates("sampler").to_dict("records")
        chosen[nfe] = [row for row in rows if row["plan_hash"] in files][:STRIP_ROWS]
    shown = [row for rows in chosen.values() for row in rows]
    wanted = [files[row["plan_hash"]] for row in [*shown, reference] if row["plan_hash"] in files]
    for file in wanted:
        _require_model(file, results)
    seeds = shared_seeds(wanted, rows=len(wanted))
    if not seeds:
        return Samples(strips=(), seeds=(), reference=None)
    return Samples(
        strips=[
            Strips(nfe, [(row, strip(files[row["plan_hash"]], seeds)) for row in rows])
            for nfe, rows in chosen.items()
            if rows
        ],
        seeds=seeds,
        reference=(
            (reference, strip(files[reference["plan_hash"]], seeds))
            if reference["plan_hash"] in files
            else None
        ),
        prompts=shared_prompts(wanted, seeds),
    )


def _require_model(file: SampleFile, results: Results) -> None:
    if file.model not in results.models:
        expected = results.model.get("fingerprint")
        raise DataError(
            f"{file.path} must hold samples of the certified model {expected}, got samples of {file.model}; "
            "sample again or name another folder."
        )


def _save_figures(results: Results, samples: Samples, background: Background, folder: Path) -> None:
    lines = figures.highlighted(results)
    figures.save(figures.distance_figure(results, lines), folder / "fd_vs_nfe")
    if results.frame["ms"].gt(0).any():
        figures.save(figures.distance_figure(results, lines, x="ms"), folder / "fd_vs_ms")
    for shown in samples.strips:
        rows = shown.rows if samples.reference is None else [samples.reference, *shown.rows]
        # grid and numbers on a line of their own, as long names would run into the images
        strips = {
            f"{row['sampler']}\n{row['grid']}, NFE {row['nfe']}, FD {number(row['fd'])}": image
            for row, image in rows
        }
        title = f"{results.model['name']}: same seeds, {shown.nfe} evaluations"
        drawn = (
            figures.prompts_figure(strips, samples.prompts, title=title)
            if samples.prompts
            else figures.samples_figure(strips, columns=len(samples.seeds), title=title)
        )
        figures.save(drawn, folder / f"samples_nfe{shown.nfe:03d}")
    if background.training is not None:
        figures.save(figures.training_figure(background.training), folder / "training")


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(value).__name__}; name another file.")
    return value
