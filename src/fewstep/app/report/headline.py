"""The answer of a report in a few sentences."""

import math

from fewstep.pipeline.report.numbers import number
from fewstep.pipeline.report.results import Results, calls_to_match, reference_row, winners
from fewstep.pipeline.report.words import describe, in_fitted, interval, of_preset, ranged, within
from fewstep.pipeline.settings import MARGIN


def headline(results: Results) -> list[str]:
    """The answer in a few sentences."""
    nfe = results.headline_nfe
    entry = next(entry for entry in winners(results) if entry["nfe"] == nfe)
    best, reference = entry["best"], reference_row(results)
    own = entry["own"]
    ours = best is own
    if ours:
        what = "a plan made for this model is best" + (f", {best['sampler']}" if best["ancestors"] else "")
    elif entry["candidates"] > 1:
        what = f"the best known sampler is {describe(best)}"
    else:
        what = f"there is one sampler, {describe(best)}"
    sentences = [f"At {nfe} evaluations {what}: FD {interval(best, 'fd')}."]
    if own is not None and not math.isnan(own["of_preset"]):
        start = "Its FD is" if ours else f"The best such plan's FD, {interval(own, 'fd')}, is"
        sentences.append(f"{start} {of_preset(own, entry['preset'])}.")
        sentences += [told for told in (in_fitted(own),) if told is not None]
    if entry["ties"]:
        are = "is" if entry["ties"] == 1 else "are"
        sentences.append(
            f"{entry['ties']} of {entry['candidates'] - 1} other plans {are} not distinguishable from it."
        )
    if reference["nfe"] > nfe and reference["sampler"] != best["sampler"]:
        shown = calls_to_match(results, best, reference, MARGIN)
        target = f"{reference['sampler']} at {reference['nfe']}"
        if shown is None:
            sentences.append(f"FD of {target} is {interval(reference, 'fd')}.")
        else:
            calls, verdict = shown
            who = "such a plan" if ours else "it"
            sentences.append(
                f"At {calls} evaluations {who} is as good as {target} (FD {interval(reference, 'fd')}), "
                f"{within(MARGIN)}: difference {ranged(verdict.difference.value, *verdict.difference.interval)}, "
                "corrected for the number of plans."
            )
    if not math.isnan(results.baseline):
        sentences.append(f"Equally many real images are at FD {number(results.baseline)}.")
    return sentences
