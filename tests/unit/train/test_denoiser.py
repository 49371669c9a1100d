import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import ToyImages, recipe, tiny_net, weights

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow
from fewstep.files import _mark
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.train import loop
from fewstep.train.checkpoint import LOCK
from fewstep.train.denoiser import train_denoiser
from fewstep.train.metrics_log import OF_CLOCK, MetricsLog
from fewstep.train.recipe import Recipe
from fewstep.train.sandwich import Sandwich

FIELDS = {field.name for field in fields(Recipe)}
PROGRAM = Path(__file__).with_name("toy.py")


def train(net=None, images=None, **changes):
    where = {name: changes.pop(name) for name in list(changes) if name not in FIELDS}
    return train_denoiser(
        images or ToyImages(), net or tiny_net(), recipe(**changes), **{"log_every": 3, **where}
    )


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def checkpoints_in(folder: Path) -> list[str]:
    """Names of what stands in a folder of checkpoints, but for its lock."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    with (folder / "errors.txt").open("a") as errors:
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stderr=errors,
        )


def errors_of(folder: Path) -> str:
    return (folder / "errors.txt").read_text()


def wait_for_checkpoint(folder: Path, running: subprocess.Popen) -> None:
    for _ in range(1200):
        if list(folder.glob("checkpoints/step-*")):
            return
        assert running.poll() is None, errors_of(folder)
        time.sleep(0.05)
    raise AssertionError("no checkpoint appeared in a minute")


def test_the_same_command_gives_the_same_weights():
    assert same(weights(train()), weights(train()))
    assert not same(weights(train()), weights(train(seed=1)))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "u", "edm"])
def test_every_prediction_learns(prediction):
    schedule = EDM() if prediction == "edm" else Flow() if prediction == "u" else DDPMTable.linear()
    records = []

    def watch(steps):
        for step in steps:
            yield step
            records.append(step)

    state = train(schedule=schedule, prediction=prediction, progress=watch, steps=6)
    assert records == list(range(6)) and state.step == 6 and state.images_seen == 48


def test_parts_of_a_batch_give_the_whole_batch():
    whole, parts = weights(train(steps=3)), weights(train(steps=3, parts=3))
    # float32 sums in another order; AdamW's first steps divide gradients by their size, so use their scale
    assert all(torch.allclose(whole[k], parts[k], atol=2e-4) for k in whole)
    assert not same(whole, weights(train(steps=3, lr=2e-2)))


class Killed(BaseException):
    """In the place of SIGKILL, which leaves no time for anything either."""


def killed_at(step):
    def wrap(steps):
        for i in steps:
            if i == step:
                raise Killed
            yield i

    return {"progress": wrap}


def terminated_at(step):
    return {"progress": noting(signal.SIGTERM, step)}


def noting(number, step):
    """A signal in a step, as its handler notes it: to this process one would be sent beside those that run it."""

    def wrap(steps):
        for i in steps:
            if i == step:
                RECEIVED.append(number)
            yield i

    return wrap


RECEIVED = []


@pytest.fixture(autouse=True)
def received(monkeypatch):
    """The signals that a training in this process has received; test_sigterm_saves_then_stops sends a real one."""

    @contextlib.contextmanager
    def signals():
        RECEIVED.clear()
        yield RECEIVED

    monkeypatch.setattr(loop, "_signals", signals)


def until(step):
    return {"until": step}


def rows(file: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in OF_CLOCK} for line in lines(file)]


@pytest.mark.parametrize("stopped", [killed_at, terminated_at, until])
@pytest.mark.parametrize("points", [(1,), (4,), (6,), (10,), (5, 7, 8)])
def test_weights_and_metrics_of_a_resumed_training_are_those_of_an_undisturbed_one(tmp_path, stopped, points):
    """Eleven steps, a checkpoint at each second and a row at each third one, and at the last."""
    settings = {"steps": 11, "checkpoint_every": 2}
    whole = train(tiny_net(dropout=0.1), metrics=tmp_path / "whole.jsonl", **settings)
    settings |= {"checkpoints": tmp_path / "c", "metrics": tmp_path / "parts.jsonl"}
    for point in points:
        with contextlib.suppress(Killed, SystemExit):
            train(tiny_net(dropout=0.1), **settings, **stopped(point))
    resumed = train(tiny_net(dropout=0.1), **settings)
    assert same(weights(whole), weights(resumed))
    assert (resumed.step, resumed.images_seen) == (whole.step, whole.images_seen)
    assert [row["step"] for row in rows(tmp_path / "whole.jsonl")] == [3, 6, 9, 11]
    assert rows(tmp_path / "parts.jsonl") == rows(tmp_path / "whole.jsonl")
    train(tiny_net(dropout=0.1), **settings)
    assert rows(tmp_path / "parts.jsonl") == rows(tmp_path / "whole.jsonl")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["MetricsLog.append", "write_checkpoint"])
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_a_kill_around_the_writing_of_files_changes_nothing(tmp_path, monkeypatch, what, when, nth):
    settings = {"steps": 11, "checkpoint_every": 3}
    whole = train(metrics=tmp_path / "whole.jsonl", **settings)
    settings |= {"checkpoints": tmp_path / "c", "metrics": tmp_path / "parts.jsonl"}
    write = MetricsLog.append if what == "MetricsLog.append" else loop.write_checkpoint
    calls = []

    def interrupted(*arguments, **named):
        calls.append(named)
        if len(calls) == nth and when == "before":
            raise Killed
        write(*arguments, **named)
        if len(calls) == nth:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"fewstep.train.loop.{what}", interrupted)
        train(**settings)
    resumed = train(**settings)
    assert same(weights(whole), weights(resumed))
    assert rows(tmp_path / "parts.jsonl") == rows(tmp_path / "whole.jsonl")


def test_metrics_of_a_training_that_is_made_longer_are_those_of_the_long_one(tmp_path):
    settings = {"lr_schedule": "constant"}
    train(**settings, metrics=tmp_path / "whole.jsonl")
    for steps in (4, 7, 12):
        train(**settings, steps=steps, checkpoints=tmp_path / "c", metrics=tmp_path / "parts.jsonl")
        assert rows(tmp_path / "parts.jsonl")[-1]["step"] == steps
    assert rows(tmp_path / "parts.jsonl") == rows(tmp_path / "whole.jsonl")


def test_killed_and_resumed_is_bit_identical(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    first = start(undisturbed)
    running = start(killed, "12", "0.15")
    wait_for_checkpoint(killed, running)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (killed / "final.safetensors").exists()
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 999, "loss": 0}\n{"step": 3, "lo'
        )  # lines after the checkpoint, the last one torn
    again = start(killed)
    assert first.wait() == 0 and again.wait() == 0, errors_of(killed)
    assert same(load_file(undisturbed / "final.safetensors"), load_file(killed / "final.safetensors"))
    assert [line["step"] for line in lines(killed / "metrics.jsonl")] == [3, 6, 9, 12]
    assert rows(undisturbed / "metrics.jsonl") == rows(killed / "metrics.jsonl")


def test_a_second_training_in_the_same_folder_is_refused_while_the_first_lives(tmp_path):
    """As when a workflow is killed, its training lives on, and the workflow is started again."""
    first = start(tmp_path / "run", "500", "0.05")
    wait_for_checkpoint(tmp_path / "run", first)
    with pytest.raises(
        ConfigError, match=f"checkpoints must be free, but process {first.pid} on .* trains there"
    ):
        train(checkpoints=tmp_path / "run" / "checkpoints")
    first.kill()
    first.wait()
    with pytest.raises(ConfigError, match="other settings"):  # the lock is free
        train(checkpoints=tmp_path / "run" / "checkpoints")


def test_what_a_killed_training_left_half_written_is_removed(tmp_path):
    left = tmp_path / f".step-00000069{_mark()}abcd1234"
    left.mkdir()
    (left / "tensors.pt").write_bytes(b"half")
    train(checkpoints=tmp_path, steps=3)
    assert checkpoints_in(tmp_path) == ["step-00000003"]


def test_sigterm_saves_then_stops(tmp_path):
    running = start(tmp_path / "run", "500", "0.05")
    wait_for_checkpoint(tmp_path / "run", running)
    running.terminate()
    assert running.wait() == 128 + signal.SIGTERM, errors_of(tmp_path / "run")
    step = int(checkpoints_in(tmp_path / "run" / "checkpoints")[-1].removeprefix("step-"))
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(3, step + 1, 3))


def test_an_interrupt_saves_then_raises(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(checkpoints=tmp_path, progress=noting(signal.SIGINT, 5))
    assert checkpoints_in(tmp_path) == ["step-00000006"]
    assert same(weights(train(checkpoints=tmp_path)), weights(train()))


def test_two_processes_give_the_losses_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    train(steps=6, metrics=tmp_path / "one.jsonl", log_every=1)
    folder = tmp_path / "two"
    ranks = [
        start(
            folder,
            "6",
            "0",
            RANK=str(r),
            LOCAL_RANK=str(r),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for r in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], errors_of(folder)
    one, two = weights(train(steps=6)), load_file(folder / "final.safetensors")
    # float32: gradients are summed in another order; AdamW amplifies the smallest of them
    assert max((one[k] - two[k]).abs().max() for k in one) < 1e-3
    single = [line["loss"] for line in lines(tmp_path / "one.jsonl")]
    for line, expected in zip(lines(folder / "metrics.jsonl"), (single[:3], single[3:]), strict=True):
        assert line["loss"] == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    def poison(steps):
        for step in steps:
            if step == 5:
                with torch.no_grad():
                    net.conv_in.weight.fill_(float("nan"))
            yield step

    net = tiny_net()
    with pytest.raises(
        DataError, match=r"loss must be finite but is nan at step 6; .*step-00000004"
    ) as caught:
        train(net, checkpoints=tmp_path, checkpoint_every=2, progress=poison)
    assert "\n" not in str(caught.value)
    assert checkpoints_in(tmp_path) == ["step-00000002", "step-00000004"]


def test_only_a_constant_rate_lets_a_training_grow(tmp_path):
    grown = {}
    for shape in ("constant", "cosine"):
        settings = {"lr_schedule": shape}
        folder = tmp_path / shape
        train(**settings, steps=6, checkpoints=folder)
        if shape == "cosine":
            with pytest.raises(ConfigError, match="steps was 6, now 12"):
                train(**settings, checkpoints=folder)
        else:
            grown = weights(train(**settings, checkpoints=folder))
            whole = weights(train(**settings))
            assert all(torch.equal(whole[name], grown[name]) for name in whole)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(checkpoints=tmp_path, until=2)
    with pytest.raises(ConfigError, match=r"other settings \(lr was 0.01, now 0.02\)"):
        train(checkpoints=tmp_path, lr=0.02)
    with pytest.raises(ConfigError, match="net was"):
        train(tiny_net(blocks=2), checkpoints=tmp_path)


@pytest.mark.parametrize("name", ["tensors.pt", "checkpoint.json"])
def test_a_damaged_checkpoint_is_one_clear_sentence(tmp_path, name):
    train(checkpoints=tmp_path, until=2)
    file = tmp_path / "step-00000002" / name
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match="step-00000002") as caught:
        train(checkpoints=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"weighting": "p3"}, "uniform, snr, min-snr-5, edm"),
        ({"precision": "fp8"}, "fp32 or bf16"),
        ({"condition_dropout": 1.0}, "condition_dropout"),
        ({"warmup_steps": 12}, "warm-up"),
        ({"lr_schedule": "step"}, "constant, cosine or power"),
        ({"cooldown": 3}, "needs a constant rate"),
        ({"lr_schedule": "constant", "cooldown": 11}, "10 steps after the warm-up; got 11"),
        ({"batch_size": 0}, "batch_size"),
        ({"parts": 9}, "parts"),
        ({"steps": 0}, "steps"),
        ({"ema_decay": None}, "exactly one"),
    ],
)
def test_bad_settings_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        train(**changes)


def test_labels_are_needed_by_a_network_with_classes():
    images = ToyImages()
    images.labels = None
    with pytest.raises(ConfigError, match="labels"):
        train(images=images)
    assert train(tiny_net(n_classes=0), images, condition_dropout=0.0, steps=3).step == 3


def test_labels_are_hidden_at_the_asked_rate():
    seen = []
    net = tiny_net()
    net.label.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    train(net, condition_dropout=0.5, steps=40, batch_size=20)
    share = (torch.cat(seen) == 2).float().mean().item()
    assert abs(share - 0.5) < 0.07  # 800 draws: four standard deviations


def test_bf16_and_half_life_train():
    state = train(precision="bf16", ema_decay=None, ema_half_life=20.0, steps=4)
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in weights(state).values())


# Conditions besides the class


def conditions(n=20):
    rng = generator(6)
    return Condition(
        {"context": torch.randn(n, 3, 5, generator=rng), "mask": torch.randn(n, 1, 4, 4, generator=rng)}
    )


def conditioned(**changes):
    return tiny_net(maps={"mask": 1}, context=5, **changes)


def test_network_with_maps_context_and_classes_trains_on_all_of_them():
    net = conditioned()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = train(net, condition=conditions())
    moved = {name for name, p in state.nets["net"].named_parameters() if not torch.equal(p, before[name])}
    assert {"maps_in.weight", "middle_in.cross.kv.weight", "label.weight"} <= moved
    assert not same(
        weights(state), weights(train(conditioned(), condition=conditions()[torch.arange(19, -1, -1)]))
    )


def test_condition_is_hidden_whole_at_the_asked_rate():
    seen = []
    net = conditioned()
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    train(net, condition=conditions(), condition_dropout=0.5, steps=40, batch_size=20)
    condition = Condition.cat(seen)
    hidden = condition.values["label"] == 2
    for name in ("context", "mask"):
        assert torch.equal(hidden, condition.values[name].flatten(1).eq(0).all(1))
    assert abs(hidden.float().mean().item() - 0.5) < 0.07  # 800 draws: four standard deviations


def test_conditioned_training_resumes_bit_for_bit_on_the_same_conditions_alone(tmp_path):
    whole = train(conditioned(), condition=conditions())
    train(conditioned(), condition=conditions(), checkpoints=tmp_path, until=5)
    with pytest.raises(ConfigError, match="other settings .conditions was"):
        train(conditioned(), condition=conditions()[torch.arange(19, -1, -1)], checkpoints=tmp_path)
    assert same(weights(whole), weights(train(conditioned(), condition=conditions(), checkpoints=tmp_path)))


def test_conditions_that_do_not_fit_the_network_are_refused():
    with pytest.raises(ConfigError, match="this one has none; leave them out"):
        train(tiny_net(n_classes=0), condition=conditions(), condition_dropout=0.0)
    with pytest.raises(DataError, match="must have the names context, label, mask; got context, label"):
        train(conditioned(), condition=Condition({"context": conditions().values["context"]}))
    with pytest.raises(ConfigError, match="takes mask floating point .* but there are no conditions"):
        train(conditioned(n_classes=0))
    with pytest.raises(DataError, match="each of the 20 images"):
        train(conditioned(n_classes=0), condition=conditions(7))
    with pytest.raises(ConfigError, match="condition_dropout needs a network with a null condition; got 0.2"):
        train(tiny_net(n_classes=0))


def test_sandwich_of_a_conditioned_network_trains():
    with initial_weights(3):
        net = UNet(4, 1, 8, (1, 2), n_classes=2, maps={"mask": 1}, context=5)
    state = train(net, condition=conditions(), loss_of_step=Sandwich(net, (1.0, 0.5)), steps=3)
    assert state.step == 3 and net.maps_in.weight.any()
