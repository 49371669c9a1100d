"""The loop itself, with steps that are not about diffusion: two networks, classifiers, odd values."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from toy import ToyImages

from fewstep.checks import ConfigError, DataError
from fewstep.nets.classifier import Classifier
from fewstep.rng import generator, initial_weights
from fewstep.train.batches import image_batches
from fewstep.train.checkpoint import held
from fewstep.train.classifier import accuracy, train_classifier
from fewstep.train.descent import descend, slices
from fewstep.train.ema import Ema
from fewstep.train.loop import LRSchedule, State, fit
from fewstep.train.metrics_log import MetricsLog
from fewstep.train.world import World, joined


def adversaries() -> tuple[State, object]:
    """A generator and a critic, each with an optimiser: what a GAN needs of the loop."""
    with initial_weights(0):
        generator, critic = nn.Linear(4, 16), nn.Linear(16, 1)
    optimisers = {
        "generator": torch.optim.Adam(generator.parameters(), lr=1e-2),
        "critic": torch.optim.Adam(critic.parameters(), lr=4e-2),
    }
    state = State(
        {"generator": generator, "critic": critic}, optimisers, {"generator": Ema(generator, decay=0.9)}
    )

    def step(state, batch, *, rng):
        z = batch.cut(torch.randn(batch.size, 4, generator=rng))
        real = batch.x0.flatten(1)
        world = World()

        def critic_loss(rows):
            return (critic(generator(z[rows]).detach()) - critic(real[rows])).squeeze(1)

        def generator_loss(rows):
            return -critic(generator(z[rows])).squeeze(1)

        made = {}
        for name, loss in (("critic", critic_loss), ("generator", generator_loss)):
            values = descend(loss, state.nets[name], state.optimisers[name], size=batch.size, world=world)
            made[f"{name}_loss"] = values["loss"]
        return made

    return state, step


def run(folder=None, until=None, **changes):
    state, step = adversaries()
    batches = image_batches(ToyImages(), batch_size=8, seed=0)
    lr_schedule = LRSchedule(changes.pop("steps", 10), cooldown=changes.pop("cooldown", 0))
    values = {
        "lr_schedule": lr_schedule,
        "seed": 0,
        "settings": {"kind": "test"},
        "checkpoint_every": 3,
        **changes,
    }
    return fit(state, step, batches, checkpoints=folder, until=until, **values)


def test_two_networks_with_an_optimiser_each_resume(tmp_path):
    whole = run()
    run(tmp_path, until=5)
    resumed = run(tmp_path, metrics=tmp_path / "metrics.jsonl")
    for name in ("generator", "critic"):
        assert torch.equal(whole.nets[name].weight, resumed.nets[name].weight)
    assert torch.equal(whole.ema["generator"].net.weight, resumed.ema["generator"].net.weight)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 10 and line["lr_critic"] == 4e-2 and line["lr_generator"] == 1e-2
    assert {"critic_loss", "generator_loss", "images", "images_per_second"} <= line.keys()


def test_a_training_goes_on_past_its_end_as_if_it_had_been_longer_from_the_start(tmp_path):
    whole = run(steps=10)
    run(tmp_path, steps=6)
    longer = run(tmp_path, steps=10)
    assert torch.equal(whole.nets["critic"].weight, longer.nets["critic"].weight)
    assert torch.equal(whole.ema["generator"].net.weight, longer.ema["generator"].net.weight)


def test_a_training_shorter_than_its_checkpoint_is_refused(tmp_path):
    run(tmp_path, steps=6)
    with pytest.raises(ConfigError, match="steps must be at least 6"):
        run(tmp_path, steps=5)


def test_a_second_training_in_one_folder_is_refused(tmp_path):
    with (
        held(tmp_path),
        pytest.raises(ConfigError, match=r"must be free, but process \d+ on \S+ trains there"),
    ):
        run(tmp_path)
    assert run(tmp_path).step == 10


def test_old_checkpoints_are_removed_and_a_finished_run_does_nothing(tmp_path):
    done = run(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*[0-9]")) == ["step-00000009", "step-00000010"]
    again = run(tmp_path)
    assert again.step == 10 and torch.equal(done.nets["critic"].weight, again.nets["critic"].weight)


def test_seconds_decide_when_no_steps_are_given(tmp_path):
    run(tmp_path, checkpoint_every=None, checkpoint_seconds=1e9)
    assert [p.name for p in tmp_path.glob("*[0-9]")] == ["step-00000010"]
    seen = []

    def watch(steps):
        for step in steps:
            seen.append(len(list((tmp_path / "b").glob("step-*"))) if step else 0)
            yield step

    run(tmp_path / "b", checkpoint_every=None, checkpoint_seconds=1e-9, progress=watch)
    assert seen[:3] == [0, 1, 2]


def test_any_value_that_is_not_finite_stops(tmp_path):
    state, _ = adversaries()
    batches = image_batches(ToyImages(), batch_size=8, seed=0)
    with pytest.raises(DataError, match=r"odd must be finite but is inf at step 3; no checkpoint was kept"):
        fit(
            state,
            lambda state, batch, *, rng: {"odd": float("inf") if state.step == 2 else 1.0},
            batches,
            lr_schedule=LRSchedule(5),
            seed=0,
            settings={},
        )


def test_learning_rate_schedules():
    constant, cosine = LRSchedule(100, warmup=4), LRSchedule(100, shape="cosine")
    assert [constant(s) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert cosine(0) == 1.0 and cosine(50) == pytest.approx(0.5) and cosine(99) < 1e-3
    falling = LRSchedule(100, warmup=4, cooldown=24)
    assert all(falling(s) == constant(s) for s in range(76))
    assert falling(76) == pytest.approx(1 - 1 / 5) and falling(99) == pytest.approx(1 - (24 / 25) ** 0.5)
    # one step past the end it would be 0, in steps that fall ever less
    falls = np.diff([falling(s) for s in range(75, 100)])
    assert (falls < 0).all() and (np.diff(falls) > 0).all()


def test_rates_scale_each_optimisers_own():
    state = run(steps=1, cooldown=1)
    fresh, step = adversaries()
    for optimiser in fresh.optimisers.values():
        optimiser.param_groups[0]["lr"] *= 1 - 0.5**0.5
    step(fresh, image_batches(ToyImages(), batch_size=8, seed=0)(0), rng=generator(0, "step", 0))
    assert torch.equal(state.nets["critic"].weight, fresh.nets["critic"].weight)
    assert state.optimisers["critic"].param_groups[0]["lr"] == 4e-2


def test_a_constant_rate_may_be_ended_by_a_cooldown_later(tmp_path):
    whole = run(steps=10, cooldown=4)
    run(tmp_path, steps=6)
    ended = run(tmp_path, steps=10, cooldown=4)
    assert torch.equal(whole.nets["critic"].weight, ended.nets["critic"].weight)
    assert not torch.equal(whole.nets["critic"].weight, run(steps=10).nets["critic"].weight)
    with pytest.raises(ConfigError, match="cooldown was 4, now None; steps was 10, now None"):
        run(tmp_path, steps=12)


def test_a_cooldown_that_should_have_begun_is_refused(tmp_path):
    run(tmp_path, steps=7)
    with pytest.raises(ConfigError, match="cooldown was None, now 4"):
        run(tmp_path, steps=10, cooldown=4)


def test_slices_cover_the_rows():
    assert [s.stop - s.start for s in slices(7, 3)] == [2, 2, 3]
    with pytest.raises(ConfigError, match="1 to 2 parts"):
        slices(2, 3)


def test_clipping_limits_the_step():
    net = nn.Linear(1, 1, bias=False)
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    before = net.weight.item()
    values = descend(
        lambda rows: 1000.0 * net(torch.ones(4, 1)[rows]).squeeze(1),
        net,
        optimiser,
        size=4,
        world=World(),
        clip=0.5,
    )
    assert values["grad_norm"] == pytest.approx(1000.0)
    assert net.weight.item() == pytest.approx(before - 0.5, rel=1e-4)


def test_metrics_are_cut_to_whole_lines(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 1}\n{"step": 5}\n{"step": 9}\n{"st')
    log = MetricsLog(file)
    log.cut_to(5)
    log.append({"step": 6, "loss": 0.5})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 5, 6]
    with pytest.raises(ValueError, match="JSON"):
        log.append({"loss": float("nan")})


def test_a_broken_torchrun_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK, LOCAL_RANK"), joined():
        pass
    monkeypatch.delenv("WORLD_SIZE")
    with joined() as world:
        assert world == World() and world.leads


def test_a_classifier_learns_and_resumes(tmp_path):
    images = ToyImages()
    images.pixels[images.labels == 1, :, :2] = 255
    images.pixels[images.labels == 0, :, :2] = 0

    def fresh() -> Classifier:
        with initial_weights(0):
            return Classifier(1, 2, channels=4, features=8)

    values = {"steps": 30, "batch_size": 20, "lr": 1e-2, "seed": 0}
    net = fresh()
    train_classifier(images, net, **values, checkpoints=tmp_path)
    assert accuracy(net, images, batch_size=7) == 1.0
    again = fresh()
    train_classifier(images, again, **values, checkpoints=tmp_path)
    assert torch.equal(again.to_logits.weight, net.to_logits.weight)


def test_a_classifier_refuses_what_it_cannot_learn():
    images = ToyImages()
    values = {"steps": 1, "batch_size": 4, "lr": 1e-2, "seed": 0}
    images.labels = np.full(20, 7)
    with pytest.raises(ConfigError, match="below the network's 2 classes"):
        train_classifier(images, Classifier(1, 2), **values)
    images.labels = None
    with pytest.raises(ConfigError, match="needs labels"):
        train_classifier(images, Classifier(1, 2), **values)
    with pytest.raises(ConfigError, match="labels"):
        accuracy(Classifier(1, 2), images)
