"""Two time-scale update rule and Fréchet inception distance [heusel2017ttur].

The rule itself is in `fewstep.train.adversarial`, the distance in `fewstep.metrics.frechet`. Here are the arms of the
paper's experiments with a search over both rates, and disturbed images.
"""
