"""The two time-scale update rule [heusel2017ttur]: two learning rates, tuned apart, instead of several critic steps.

The rule itself is in `fewstep.train.adversarial`. Here are the arms of its experiments and a search over both rates.
"""
