"""Text-to-image pipelines as functions: equal to their own runs? at what cost? and does the doctor find what is wrong?

    python benchmarks/text_to_image.py [--only CLASS,...]

All pipelines are tiny and random, those of the tests (tests/unit/interop/tiny_text.py): this is about equality and
cost, not about images. For each class, in standard deviations of what is compared: the function against what the
pipeline hands to its own scheduler; our loop against the pipeline's Euler or DDIM; exported plans in the pipeline
against our loop; and, as control, the function under other prompts. Then seconds outside the network, the memory of a
gradient with and without checkpointing, and the kinds of faults that `fewstep doctor` finds of those built in its
tests. The tables go to benchmarks/results/text_to_image.md.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/unit/interop")]
warnings.simplefilter("ignore")

import test_asking as asking  # noqa: E402
import test_doctor as doctor  # noqa: E402
import tiny_text  # noqa: E402

import fewstep as fs  # noqa: E402
from fewstep.diffusion.schedule import Flow  # noqa: E402
from fewstep.interop.diffusers_plan import to_diffusers  # noqa: E402
from fewstep.rng import ImageNoise  # noqa: E402
from fewstep.sampling.presets import PRESETS  # noqa: E402
from fewstep.sampling.solver import Values  # noqa: E402

RESULT = ROOT / "benchmarks/results/text_to_image.md"


def equalities(kind):
    """Largest differences of one class, and the control."""
    model, pipe = asking.model_of(kind), tiny_text.pipeline(kind)
    asked, prompts = model.fn.asked, tiny_text.PROMPTS
    seen, _ = asking.own_run(kind, 3)
    step, control = 0.0, 0.0
    for k, (output, t, x) in enumerate(seen):
        if "EulerDiscrete" in type(pipe.scheduler).__name__ and not isinstance(model.schedule, Flow):
            x = x / (1 + float(pipe.scheduler.sigmas[k]) ** 2) ** 0.5
        with torch.no_grad():
            step = max(step, asking.off(asked(x, torch.tensor(t), prompts[:2]), output))
            control = max(control, asking.off(asked(x, torch.tensor(t), prompts[2:]), output))
    loop = asking.loop_against_scheduler(kind)
    exported = max(export_of(model, pipe, kind, name, n) for name, n in (("unipc-2", 6), ("dpmpp-3m", 5)))
    return type(pipe).__name__, model.rows, step, loop, exported, control


def export_of(model, pipe, kind, preset, n):
    grid = "shifted:3" if isinstance(model.schedule, Flow) else "uniform-lambda"
    plan = PRESETS[preset](model.schedule, n, grid=grid, to_zero=True)
    x = ImageNoise([0, 1], model.shape)()
    ours = fs.solve(model, plan, x, condition=model.condition_of([0, 1]))
    own, pipe.scheduler = pipe.scheduler, to_diffusers(plan, model)
    try:
        more = {**tiny_text.CALLS[kind], "output_type": "latent", "latents": x}
        return asking.off(
            pipe(prompt=list(tiny_text.PROMPTS[:2]), num_inference_steps=n, **more).images, ours
        )
    finally:
        pipe.scheduler = own


def outside(kind, calls=12):
    """Processor milliseconds outside the network: of an evaluation here, and of a step of the pipeline's own loop."""
    model = asking.model_of(kind)
    asked, net = model.fn.asked, model.net
    spent = []
    handles = [
        net.register_forward_pre_hook(lambda *_: spent.append(-time.process_time())),
        net.register_forward_hook(lambda *_: spent.append(time.process_time())),
    ]
    x = ImageNoise([0], model.shape)()
    found = []
    for run in ("ours", "theirs"):
        ms = []
        for _ in range(3):
            spent.clear()
            started = time.process_time()
            if run == "ours":
                with torch.no_grad():
                    for _ in range(calls):
                        asked(x, torch.tensor(500.0), tiny_text.PROMPTS[:1])
            else:
                more = {**tiny_text.CALLS[kind], "output_type": "latent"}
                tiny_text.pipeline(kind)(prompt=tiny_text.PROMPTS[0], num_inference_steps=calls, **more)
            ms.append(1000 * (time.process_time() - started - sum(spent)) / calls)
        found.append(statistics.median(ms))
    for handle in handles:
        handle.remove()
    return found


def kept(kind, calls, *, checkpointed):
    """Megabytes that autograd keeps for the gradient of a plan, and that gradient."""
    model = asking.model_of(kind)
    model.fn.asked.checkpointed = checkpointed
    plan = PRESETS["dpmpp-2m"](model.schedule, calls, grid="uniform-lambda", to_zero=True)
    values, held = Values.of(plan), {}
    weights = {p.untyped_storage().data_ptr() for part in model.fn.asked.pipe.components.values()
               if isinstance(part, torch.nn.Module) for p in part.parameters()}  # fmt: skip

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    values.lambdas.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = fs.solve(
            model, plan, ImageNoise([0], model.shape)(), condition=model.condition_of([0]), values=values
        )
    made.mean().backward()
    model.fn.asked.checkpointed = True
    return sum(held.values()) / 1e6, values.lambdas.grad


def faults():
    """Kinds of faults that were built, and those of them that were found."""
    found = 0
    for fault, (kind, parts, more) in doctor.FAULTS.items():
        found += fault in doctor.found(kind, **more, **parts)
    return found, len(doctor.FAULTS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(tiny_text.KINDS))
    chosen = parser.parse_args().only.split(",")
    torch.set_num_threads(1)
    lines = [
        "# Text-to-image pipelines as functions",
        "",
        "`python benchmarks/text_to_image.py`; tiny random pipelines, float32, one thread. Largest differences in",
        "standard deviations of what is compared; UniPC-2 in 6 calls and DPM-Solver++(3M) in 5 for the export.",
        "",
        "| pipeline | rows | asked, own run | our loop, own scheduler | export, our loop | other prompts (control) |",
        "|---|---|---|---|---|---|",
    ]
    for kind in chosen:
        name, rows, step, loop, exported, control = equalities(kind)
        lines.append(
            f"| {name} ({kind}) | {rows} | {step:.0e} | {loop:.0e} | {exported:.0e} | {control:.1f} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        "| processor ms outside the network | an evaluation here | a step of the pipeline's own loop |",
        "|---|---|---|",
    ]
    for kind in ("sd15", "flux"):
        ours, theirs = outside(kind)
        lines.append(f"| {kind} | {ours:.1f} | {theirs:.1f} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "| MB kept for a gradient (sdxl) | checkpointed | not | gradients equal |",
        "|---|---|---|---|",
    ]
    for calls in (4, 8):
        (less, a), (more, b) = (kept("sdxl", calls, checkpointed=c) for c in (True, False))
        lines.append(f"| {calls} calls | {less:.2f} | {more:.1f} | {torch.equal(a, b)} |")
        print(lines[-1], flush=True)
    found, built = faults()
    lines += ["", f"`fewstep doctor` finds {found} of {built} kinds of faults that were built."]
    print(lines[-1])
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
