"""Tell the network another time than the step's own: the Timestep Aligner [xia2023aligner], as a maker of plans.

A few-step sampler follows a prediction over a long interval, in which another time's would serve better. The grid
and all coefficients stay; per network call one scalar, the time told to the network, is fitted (and, if wanted, a
factor on the predicted noise, as in [zhou2024amed]). `align` fits one after the other and keeps what holds on noises
that the fit has not seen, `calibrate` finds the bias of the network's own clock, and `free` moves all by gradients.
"""
