"""Inpainting by diffusion with a noise level of its own for each pixel [kim2025rad], and its baselines."""
