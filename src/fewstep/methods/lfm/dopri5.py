"""The adaptive solver that LFM publishes its numbers with, as a reference: Dormand-Prince 5(4) [dao2023lfm, Sec. 5].

It is no plan: where it calls the network depends on the images, and a step that it rejects was paid for.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import DataError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.diffusion.prediction import weights

TOLERANCE = 1e-5
"""rtol and atol of the published scripts."""


def velocity(denoiser: Denoiser, x_t: Tensor, t: float) -> Tensor:
    """D x_t / dt of the probability flow, whatever the network predicts; one call of it."""
    schedule = denoiser.model.schedule
    at = torch.tensor(t, dtype=torch.float64)
    read = weights(denoiser.model.prediction, schedule, at)
    alpha_rate, sigma_rate = schedule.rates(at)
    of_x = alpha_rate * read.x0_of_x + sigma_rate * read.eps_of_x
    of_output = alpha_rate * read.x0_of_output + sigma_rate * read.eps_of_output
    return float(of_x) * x_t + float(of_output) * denoiser.output(x_t, t)


@torch.no_grad()
def dopri5(
    model: Model,
    x_T: Tensor,
    *,
    condition: Condition | None = None,
    guidance: float = 1.0,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, int]:
    """Solve from the largest time to the least, then x0_hat; all images share their steps.

    Returns: x0 (B, *shape), and the network evaluations of each image.
    Raises: DataError: the solver gave up.
    """
    from scipy.integrate import solve_ivp

    denoiser = Denoiser(model, condition=condition, guidance=guidance)
    schedule = model.schedule

    def rate(t: float, flat: Any) -> Any:
        x_t = torch.from_numpy(np.asarray(flat, np.float32)).reshape(x_T.shape).to(x_T.device)
        return velocity(denoiser, x_t, float(t)).double().cpu().flatten().numpy()

    found = solve_ivp(
        rate,
        (schedule.t_start, schedule.t_min),
        x_T.double().cpu().flatten().numpy(),
        method="RK45",
        rtol=tolerance,
        atol=tolerance,
        t_eval=[schedule.t_min],
    )
    if not found.success:
        raise DataError(f"dopri5 must reach t = {schedule.t_min}, but {found.message}")
    last = torch.from_numpy(found.y[:, -1].astype(np.float32)).reshape(x_T.shape).to(x_T)
    return denoiser.x0(last, schedule.t_min), denoiser.nfe
