"""Aligned conditioning timesteps: the Timestep Aligner [xia2023aligner], which makes plans of plans.

A few-step sampler follows a prediction over a long interval, in which that for another timestep would serve better.
The grid and all coefficients stay; one scalar per network call, its conditioning timestep, is fitted (and, if wanted,
a factor on the predicted noise, as in [zhou2024amed]). `align` fits one after the other and keeps what holds on noises
that the fit has not seen, `calibrate` finds the bias of the network's timesteps, and `free` moves all by gradients.
"""
