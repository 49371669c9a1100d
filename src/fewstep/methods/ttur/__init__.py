"""Two time-scale update rule and Fréchet inception distance [heusel2017ttur]."""
