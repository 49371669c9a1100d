"""The report of a run: a page for people, tables for machines, and the leaderboard for the terminal."""

from fewstep.app.report.build import build_report
from fewstep.pipeline.report.results import Results, read_results
from fewstep.app.report.terminal import print_leaderboard

__all__ = ["Results", "build_report", "print_leaderboard", "read_results"]
