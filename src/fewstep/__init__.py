"""fewstep: the best sampler for a diffusion model and a step budget, and how sure we are."""

__version__ = "0.1.0"
