"""Search for the solver of a model and a number of calls: the USF space and the S3 search [liu2024usf], and beyond.

`space` says which plans there are, `evolution` and `ranker` how to look among them, `teacher` what they are measured
against, `free` moves all numbers of a found plan by gradients, and `gits` makes grids to start from.
"""
