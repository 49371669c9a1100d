"""Times spaced by a power, t_i = t_max (1 - i / n)^p: the example of CONTRIBUTING.md, and no paper."""

from fewstep.diffusion.schedule import Schedule


def times(schedule: Schedule, nfe: int, power: float) -> list[float]:
    """Falling times of a plan that ends at clean data, (nfe,), in the schedule's time."""
    return [max(schedule.t_min, schedule.t_max * (1 - i / nfe) ** power) for i in range(nfe)]
