"""Sampling plans, their compilation to scalars, and the one loop that runs them."""
