"""The report of a run: a page for people, tables for machines, and the leaderboard for the terminal."""

from fewstep.pipeline.report.build import build_report
from fewstep.pipeline.report.results import Results, read_results
from fewstep.pipeline.report.terminal import print_leaderboard

__all__ = ["Results", "build_report", "print_leaderboard", "read_results"]
