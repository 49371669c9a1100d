"""Models of patches at other sizes, and the ways of decoding that the collage is compared with."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.denoiser import Model
from fewstep.nets.patched import PatchedUNet
from fewstep.sampling.plan import Plan, network_nodes
from fewstep.sampling.sample import Select

COLLAGE, SHIFT, PLAIN = "collage", "shift", "plain"
"""Features of neighbours; patches alone, on a grid that moves by half a patch with each call, the fixed shift of pixels
in the paper; patches alone, on one grid."""


def patched_net(model: Model) -> PatchedUNet:
    """The network behind a model.
    Raises: ConfigError: it is not one of patches.
    """
    if not isinstance(model.net, PatchedUNet):
        what = "a function" if model.net is None else f"a {type(model.net).__name__} of whole images"
        raise ConfigError(
            f"Other sizes need a model of patches, from fewstep train --objective patchdm --tile SIDE; {model.name} is "
            f"{what}."
        )
    return model.net


def enlarged(model: Model, height: int, width: int, *, rows: int | None = None) -> Model:
    """The same model for images of another size, for the sampling loop, plans and all else that takes a model.

    Plans for the model are plans for it. Positions go on beyond those that were trained [ding2024patchdm].

    Args:
        model: of patches.
        height: in pixels; a model of latents decodes them from a latent that is smaller by its factor.
        width: in pixels.
        rows: of patches that are decoded at once; 1: memory grows with the width alone. None: all.

    Raises: ConfigError: a model of another kind, or sides that are no multiples of the patch's.
    """
    net = patched_net(model)
    factor = model.image_shape[-1] // model.shape[-1]
    if height % factor or width % factor:
        side = net.tile * factor
        raise ConfigError(f"Sides must be multiples of the patch's, {side}; got {height} x {width}.")
    shape = (model.shape[0], height // factor, width // factor)
    net.grid(*shape[1:])

    def fn(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        out: Tensor = net(x_t, model.schedule.time_input(t), condition, rows=rows)
        return out

    return replace(model, shape=shape, fn=fn)


def decoded_by(model: Model, plan: Plan, decode: str) -> Select | None:
    """What to call at each node of a plan, so that patches are decoded in one of the ways; for `sample`.

    Weights that were trained for the collage know patches on one grid alone, without collage; those of the objective
    patchdm-pixels know both grids.
    """
    net = patched_net(model)
    if decode == COLLAGE:
        return None

    def calls(aligned: bool) -> Callable[..., Tensor]:
        return lambda x_t, t, condition=None: net.plain(
            x_t, model.schedule.time_input(t), condition, aligned=aligned
        )

    on_grid, between = calls(False), calls(True)
    # times fall, so that each belongs to one node
    moved = {plan.nodes[i].t for i in network_nodes(plan)[1::2]} if decode == SHIFT else set()
    return lambda node: between if node.t in moved else on_grid
