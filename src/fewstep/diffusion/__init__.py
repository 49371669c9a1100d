"""Closed forms of diffusion: schedules, predictions, grids; no I/O, no randomness."""
