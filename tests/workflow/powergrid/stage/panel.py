"""Plans on times spaced by a power in the report."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.pipeline.report.panel import Panel, rendered
from fewstep.pipeline.report.plan_figure import plan_figure
from fewstep.pipeline.report.results import Results
from fewstep.pipeline.report.svg import inline_svg
from fewstep.pipeline.samples import files_in
from fewstep.sampling.plan import load_plan


def panel(folders: Sequence[Path], results: Results) -> Panel:
    """All plans side by side, with their FD in this report."""
    plans = {plan.name: plan for plan in map(load_plan, files_in(folders, ".json"))}
    rows = [(name, results.row(plan.hash)) for name, plan in plans.items()]
    figure = plan_figure(plans)
    svg = inline_svg(figure, name="powergrid", label="The times of the plans.")
    return Panel("Times spaced by a power", rendered(__name__, {"rows": rows, "svg": svg}), {"plans": figure})
