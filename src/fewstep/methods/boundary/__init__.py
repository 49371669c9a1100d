"""Editing attributes of images across a plane in the states of a diffusion model [zhu2023boundary]."""
