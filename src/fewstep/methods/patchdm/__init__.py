"""Patched denoising diffusion [ding2024patchdm]; its network is `fewstep.nets.patched`."""
