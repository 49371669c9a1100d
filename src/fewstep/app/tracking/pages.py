"""The pages of MLflow that show results: views that it keeps with an experiment, and their addresses."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.app.tracking.entries import NOTE, RULE, Entry
from fewstep.app.tracking.store import PARENT, open_store
from fewstep.pipeline.record import metric_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VIEW = "mlflow.sharedViewState."  # + id: what MLflow's page reads for ?viewStateShareKey=id and lists under "Views"
_PREFIX = "fewstep-"
_PAGES = {
    "samplers": ("FD of each sampler", ""),
    "chart": ("FD against network calls", "&compareRunsMode=CHART"),
    "states": ("all states of the run", ""),
}
"""By name: what a page shows, and what its address has beside the view."""


def show_pages(client: "MlflowClient", experiment: str, parent_id: str, entries: Sequence[Entry]) -> None:
    """Keep the views of the results with their experiment, and its description."""
    states = _states(parent_id, entries)
    tags = client.get_experiment(experiment).tags
    for name, state in states.items():
        text, now = json.dumps(state), int(time.time() * 1000)
        if state != _state_in(tags.get(f"{_VIEW}{_PREFIX}{name}")):
            view = {"name": _PAGES[name][0], "createdAt": now, "updatedAt": now, "state": text}
            client.set_experiment_tag(experiment, f"{_VIEW}{_PREFIX}{name}", json.dumps(view))
    if NOTE not in tags:
        views = ", ".join(f"*{title}*" for title, _ in _PAGES.values())
        note = f"Samplers of diffusion models by number of network calls (NFE). Under Views: {views}."
        client.set_experiment_tag(experiment, NOTE, note)


def pages(uri: str, server: str) -> Iterator[str]:
    """One line per experiment and page: what it shows, and its address.

    Args:
        uri: The MLflow store.
        server: Address of its server, such as `http://127.0.0.1:5000`.

    Raises:
        ConfigError: The store cannot be used.
    """
    with open_store(uri) as client:
        for experiment in client.search_experiments():
            for name, (title, more) in _PAGES.items():
                if f"{_VIEW}{_PREFIX}{name}" in experiment.tags:
                    address = f"{server}/#/experiments/{experiment.experiment_id}/runs"
                    query = f"workflowType=machine_learning&viewStateShareKey={_PREFIX}{name}{more}"
                    yield f"{experiment.name}, {title}:\n    {address}?{query}"


def _state_in(tag: str | None) -> Any:
    try:
        return json.loads(json.loads(tag or "{}")["state"])
    except (KeyError, TypeError, json.JSONDecodeError):  # a person has changed it: ours again
        return None


def _states(parent_id: str, entries: Sequence[Entry]) -> dict[str, Mapping[str, Any]]:
    """What MLflow 3.17's page of runs is to show: filter, order, columns and charts, in its own words."""
    parent = entries[0]
    best = sorted({name for name, _, _ in parent.points if name.endswith(".fd")})
    of_samplers = sorted(
        {n for entry in entries[1:] for n, _, _ in entry.points if n.endswith(".fd") and n.startswith("nfe")}
    )
    order = {"orderByKey": f"metrics.`{of_samplers[0]}`", "orderByAsc": True} if of_samplers else {}
    samplers = {
        "searchFilter": f"tags.`{PARENT}` = '{parent_id}' and tags.`{RULE}` = 'evaluate'",
        **order,
        "selectedColumns": _metrics(of_samplers),
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    ranking = metric_name(parent.params.get("metric", ""))
    chart: dict[str, Any] = {
        "uuid": "fewstep-fd",
        "type": "LINE",
        "metricSectionId": "fewstep",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 20,
        "metricKey": ranking,
        "selectedMetricKeys": [ranking],
        "displayName": "FD against network calls",
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "log",
        "scaleType": "log",
        "range": {},
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "ignoreOutliers": False,
        "displayPoints": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "selectedXAxisMetricKey": "",
    }
    section = {
        "uuid": "fewstep",
        "name": "Quality",
        "display": True,
        "isReordered": True,
        "columns": 1,
        "cardHeight": 500,
    }
    charts = {"compareRunCharts": [chart], "compareRunSections": [section], "isAccordionReordered": True}
    return {
        "samplers": samplers,
        "chart": {**samplers, **(charts if ranking else {})},
        "states": {"selectedColumns": [*_metrics(best), "tags.`git.commit`"]},
    }


def _metrics(names: Sequence[str]) -> list[str]:
    return [f"metrics.`{name}`" for name in names]
