"""A view of finished results in MLflow, to be deleted and made again at will: the truth is in the files.

Per state of a run there is one MLflow run with settings, data, headline numbers, model card and figures. Below it stand
those of the stages that have something to show, such as the training curve and each search, and one per sampler (preset
on a grid, or a plan made for the model), whose metrics are logged at step = NFE, so that MLflow draws quality against
network calls. Everything is found again by a key: tracking twice adds nothing.
"""

from pathlib import Path
from typing import Any

from fewstep.app.tracking.entries import entries
from fewstep.app.tracking.live import live_curve
from fewstep.app.tracking.pages import show_pages
from fewstep.app.tracking.store import Shelf, open_store, tracking_uri
from fewstep.pipeline.passwords import without_password
from fewstep.pipeline.stage.stages import Stages

__all__ = ["live_curve", "track_run", "tracking_uri"]


def track_run(
    run: str, *, stages: Stages, uri: str, commit: str | None, results: Path = Path("results")
) -> dict[str, Any]:
    """Show the finished results of a run in MLflow, unless they are already there.

    Args:
        run: Name of the run; also of the MLflow experiment.
        stages: All stages, of which some have runs of their own.
        uri: The MLflow store, for example `sqlite:///mlflow.db`.
        commit: Commit of the code, or None when it is unknown.
        results: The folder that holds the folder of the run.

    Returns:
        The store, the experiment, the id of the parent run, how many runs belong to it and how many are new.

    Raises:
        DataError: The run has no finished report, or a file is missing or damaged.
        ConfigError: The store cannot be used.
    """
    parent, children = entries(run, results / run, commit, stages)
    with open_store(uri) as client:
        shelf = Shelf(client, run, uri)
        parent_id = shelf.ensure(parent)
        for entry in children:
            shelf.ensure(entry, parent=parent_id)
        show_pages(client, shelf.experiment, parent_id, [parent, *children])
    return {
        "uri": without_password(uri),
        "experiment": run,
        "parent": parent_id,
        "runs": 1 + len(children),
        "new": shelf.new,
    }
