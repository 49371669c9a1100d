"""Each fault is found in a pipeline that has it and not in one without, and its fix takes it away."""

import contextlib
import json
import shutil

import diffusers
import pytest
import tiny_text
import torch
from e2e.shell import fewstep

from fewstep.interop.doctor import CHECKS, examine, findings

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about processors that are not used

EULER = diffusers.FlowMatchEulerDiscreteScheduler


class Recomputing(EULER):
    """Makes its own of the timesteps that it is given, as diffusers did between 0.39 and 0.42."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu, timesteps=timesteps)
        self.timesteps = 1000 * self.sigmas[:-1]


@contextlib.contextmanager
def with_parts(kind, **parts):
    """The shared pipeline with other parts, or another version of diffusers that saved it."""
    pipe = tiny_text.pipeline(kind)
    before = dict(pipe.__dict__)
    pipe.__dict__.update(parts)
    try:
        yield pipe
    finally:
        pipe.__dict__.clear()
        pipe.__dict__.update(before)


def found(kind, *, steps=4, prompts=tiny_text.PROMPTS[:1], changes=None, **parts):
    with with_parts(kind, **parts) as pipe:
        seen = examine(pipe, tiny_text.CALLS[kind], steps=steps, prompts=prompts, changes=changes)
        return {finding.kind: finding for finding in findings(seen)}


def of_table(name="DDIMScheduler", **more):
    return getattr(diffusers, name)(**{**tiny_text.SD_TABLE, "timestep_spacing": "trailing", **more})


EVEN = {"timesteps": [1000, 750, 500, 250]}
HEALTHY = {"set_alpha_to_one": True, "clip_sample": False}
FAULTS = {
    "family": (
        "sd15",
        {"scheduler": of_table("UniPCMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction")},
        {},
    ),
    "zero-snr-eps": ("sd15", {"scheduler": of_table(rescale_betas_zero_snr=True, **HEALTHY)}, {}),
    "shifted-twice": ("sd3", {}, {}),
    "timesteps-ignored": ("sana", {"scheduler": Recomputing(shift=3.0)}, {"changes": EVEN}),
    "timesteps-disagree": ("sana", {}, {"changes": EVEN}),
    "integer-times": (
        "sd15",
        {"scheduler": of_table("DPMSolverMultistepScheduler", use_karras_sigmas=True, final_sigmas_type="zero")},
        {"steps": 7},
    ),
    "leading": ("sd15", {"scheduler": of_table(**HEALTHY, )}, {"changes": {"spacing": "leading"}}),
    "late-start": ("sd3", {"scheduler": EULER()}, {"changes": {"sigmas": [0.8, 0.5, 0.2]}}),
    "residual-noise": ("sd15", {"scheduler": of_table(set_alpha_to_one=False, clip_sample=False)}, {}),
    "calls": ("sd15", {}, {}),
    "prompt-cut": ("sd15", {}, {"prompts": ["a house with " + "many " * 30 + "windows"]}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault):
    kind, parts, more = FAULTS[fault]
    assert fault in found(kind, **more, **parts)


@pytest.mark.parametrize(
    "kind, scheduler", [("sd15", of_table(**HEALTHY)), ("sd3", EULER()), ("flux", None), ("sd21", None)]
)
def test_nothing_is_found_where_nothing_is_wrong(kind, scheduler):
    if kind == "sd21":
        scheduler = of_table(prediction_type="v_prediction", rescale_betas_zero_snr=True, **HEALTHY)
    assert found(kind, **({} if scheduler is None else {"scheduler": scheduler})) == {}


@pytest.mark.parametrize("fault", ["shifted-twice", "leading", "residual-noise", "zero-snr-eps"])
def test_the_fix_takes_the_fault_away(fault):
    kind, parts, more = FAULTS[fault]
    finding = found(kind, **more, **parts)[fault]
    name, _, value = finding.trial.partition("=")
    tried = (
        [float(v) for v in value.split(",")]
        if name == "sigmas"
        else {"true": True, "false": False}.get(value, value)
    )
    changes = {**more.get("changes", {}), name: tried}
    assert fault not in found(kind, **{**more, "changes": changes}, **parts)


def test_a_port_that_keeps_the_timesteps_of_before_the_shift():
    class Ported(EULER):
        def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
            super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
            self.timesteps = torch.linspace(1000, 250, len(self.timesteps))

    assert "timesteps-disagree" in found("flux", scheduler=Ported(shift=3.0))


def test_sigmas_that_were_shifted_already_are_shifted_twice():
    once = [3 * u / (1 + 2 * u) for u in (1, 0.75, 0.5, 0.25)]
    assert "shifted-twice" in found("sd3", changes={"sigmas": once})
    assert found("sd3", changes={"sigmas": [1.0, 0.75, 0.5, 0.25]}) == {}


def test_times_that_bfloat16_rounds():
    pipe = tiny_text.KINDS["flux"]()
    for part in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
        part.to(torch.bfloat16)
    rounded = findings(examine(pipe, tiny_text.CALLS["flux"], steps=8))
    assert [finding.kind for finding in rounded] == ["bf16-times"]
    assert "(bfloat16)" in rounded[0].sentence and rounded[0].trial == "dtype=float32"


def test_pipelines_of_newer_libraries():
    pipe = tiny_text.pipeline("sd15")
    newer = dict(pipe._internal_dict) | {"_diffusers_version": "99.1.0"}
    assert "versions" in found("sd15", _internal_dict=diffusers.configuration_utils.FrozenDict(newer))


def test_every_check_is_tested():
    assert len(FAULTS) + 2 >= len(CHECKS)


def test_what_is_seen_is_what_the_network_is_told():
    seen = examine(tiny_text.pipeline("lumina2"), tiny_text.CALLS["lumina2"], steps=4)
    shifted = [6 * u / (1 + 5 * u) for u in (1, 0.75, 0.5, 0.25)]
    assert [call.sigma for call in seen.calls] == pytest.approx(shifted, abs=1e-6)
    assert [call.told for call in seen.calls] == pytest.approx([1 - s for s in shifted], abs=1e-6)
    assert [call.rows for call in seen.calls] == [2] * 4 and (seen.start, seen.end) == (1.0, 0.0)


# The command


def test_the_command(text_saved, tmp_path):
    done = fewstep("doctor", text_saved["sd15"], "--steps", 4, "--out", tmp_path / "out")
    assert done.returncode == 1 and "leading: The run begins at timestep 751 of 999" in done.stdout
    assert "(try --with spacing=trailing)" in done.stdout
    written = json.loads((tmp_path / "out/doctor.json").read_text())
    assert [finding["kind"] for finding in written["findings"]] == ["leading", "residual-noise", "calls"]
    assert (tmp_path / "out/doctor.png").stat().st_size > 10_000
    again = fewstep("doctor", text_saved["flux"], "--call", text_saved["flux"].with_suffix(".yaml"))
    assert again.returncode == 0 and "nothing found" in again.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--with", "space=trailing"), "--with must name a field of PNDMScheduler .*; got 'space'"),
        (("--with", "trailing"), "--with must be NAME=VALUE"),
        (("--with", "sigmas=a"), "--with sigmas must be numbers"),
        (("--prompts", "none.txt"), "none.txt must be a list of prompts"),
        (("--call", "none.yaml"), "--call must be a YAML file"),
    ],
)
def test_mistakes_are_one_sentence(text_saved, arguments, words):
    done = fewstep("doctor", text_saved["sd15"], *arguments)
    assert done.returncode == 2
    assert pytest.importorskip("re").search(words, done.stderr.replace("\n", " "))


def test_a_tokenizer_without_its_vocabulary(text_saved, tmp_path):
    folder = shutil.copytree(text_saved["sd15"], tmp_path / "sd15")
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    done = fewstep("doctor", folder)
    assert done.returncode == 1 and "must hold a vocabulary, as all prompts mean the same" in done.stdout
