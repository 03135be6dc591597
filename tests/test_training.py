"""The loop: exact resume, exact accumulation, sealed choice, several processes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import launch
from torch import nn

from reprokit import stages, training
from reprokit.collaborative import MF, pointwise
from reprokit.progress import Progress
from reprokit.runs import Job, Run
from reprokit.training import Fit

ROWS = 200
SETTINGS = Fit(lr=0.05, batch_size=32, max_epochs=4, patience=9)
RNG = np.random.default_rng(0)
USERS, ITEMS = (torch.from_numpy(RNG.integers(0, 20, ROWS)) for _ in range(2))
LABELS = ((USERS + ITEMS) % 2).to(torch.int8)


class Dropped(MF):
    """MF with dropout, so that a resumed run must also restore the generators."""

    def score(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        product = nn.functional.dropout(self.users(users), 0.3, self.training) * self.items(items)
        return product.sum(-1)


def batch(index: np.ndarray) -> dict[str, torch.Tensor]:
    return {"users": USERS[index], "items": ITEMS[index], "labels": LABELS[index]}


def inputs(index: np.ndarray) -> dict[str, torch.Tensor]:
    return {"users": USERS[index], "items": ITEMS[index]}


def evaluate(predict: training.Predict) -> dict[str, float]:
    scores = predict(inputs, ROWS)
    return {"auc": float(np.mean((scores > 0) == LABELS.numpy()))}


def train(
    settings: Fit = SETTINGS, model_class: type[MF] = Dropped, **options: object
) -> tuple[MF, training.Fitted]:
    training.seed_everything(0, "model")
    model = model_class(20, 20, 8, 0.1)
    chosen = {"loss": pointwise, "batch": batch, "evaluate": evaluate, **options}
    fitted = training.fit(
        training.make_accelerator(), model, rows=ROWS, settings=settings, seed=0, **chosen
    )  # type: ignore[arg-type]
    return model, fitted


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Killed(Exception):
    pass


class KillAt(Progress):
    """Stops the run after a number of steps, as a signal would."""

    def __init__(self, steps: int) -> None:
        super().__init__(quiet=True)
        self.left = steps
        self.notes: list[str] = []

    def step(self, done: int, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("steps", [2, 7, 8, 17])
def test_a_run_killed_after_any_step_and_resumed_ends_with_the_same_bytes(
    steps: int, tmp_path: Path
):
    whole, fitted = train()
    checkpoint = tmp_path / "run.ckpt.safetensors"
    with pytest.raises(Killed):
        train(checkpoint=checkpoint, checkpoint_seconds=0, progress=KillAt(steps))
    assert checkpoint.is_file()
    watch = KillAt(0)
    resumed, again = train(checkpoint=checkpoint, progress=watch)
    assert any("resumed at epoch" in note for note in watch.notes)
    assert -watch.left < 4 * 7  # it did not start over: 7 steps an epoch
    assert same(whole, resumed)
    assert fitted.record == again.record


@pytest.mark.parametrize("damage", ["cut", "other model"])
def test_a_checkpoint_that_cannot_be_used_is_said_and_the_run_starts_again(
    damage: str, tmp_path: Path
):
    whole, _ = train()
    checkpoint = tmp_path / "run.ckpt.safetensors"
    with pytest.raises(Killed):
        other = MF if damage == "other model" else Dropped
        sized = dataclasses.replace(SETTINGS, lr=0.1)
        train(sized, other, checkpoint=checkpoint, checkpoint_seconds=0, progress=KillAt(5))
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    else:
        rename(checkpoint, "model.users.weight", "model.people.weight")
    watch = KillAt(0)
    again, _ = train(checkpoint=checkpoint, progress=watch)
    assert "the checkpoint cannot be used" in watch.notes[0]
    assert same(whole, again)


def rename(checkpoint: Path, old: str, new: str) -> None:
    """A checkpoint of a model whose parameter has another name."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(checkpoint, framework="pt") as file:
        tensors = {name.replace(old, new): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    save_file(tensors, checkpoint, metadata=header)


def test_two_processes_resume_exactly_too(tmp_path: Path):
    script = tmp_path / "resume.py"
    script.write_text(
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "import test_training as t\n"
        "whole, fitted = t.train()\n"
        f"path = Path({str(tmp_path / 'run.ckpt.safetensors')!r})\n"
        "try: t.train(checkpoint=path, checkpoint_seconds=0, progress=t.KillAt(10))\n"
        "except t.Killed: pass\n"
        "watch = t.KillAt(0)\n"
        "resumed, again = t.train(checkpoint=path, checkpoint_seconds=0, progress=watch)\n"
        "assert any('resumed at epoch' in note for note in watch.notes), watch.notes\n"
        "assert t.same(whole, resumed) and fitted.record == again.record\n"
        "print('the same')\n"
    )
    done = launch(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same") == 2


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    assert same(train()[0], train()[0])
    training.seed_everything(0, "model")
    model = Dropped(20, 20, 8, 0.1)
    training.fit(
        training.make_accelerator(), model, pointwise, batch, ROWS, evaluate, SETTINGS, seed=1
    )
    assert not same(train()[0], model)


def test_accumulated_micro_batches_equal_one_large_batch():
    large, _ = train(model_class=MF)
    small, _ = train(dataclasses.replace(SETTINGS, micro_batch=5), model_class=MF)
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def clipped_update(scale: float, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What one step moves the weights by, with step size 1 and clipped to 0.01.

    An earlier stage's optimiser holds the same weights. With `scale` the loss is scaled, as in half
    precision on a graphics card.
    """
    training.seed_everything(0, "model")
    accelerator = training.make_accelerator()
    wrapped = training.Objective(MF(20, 20, 8, 0.1), pointwise).to(accelerator.device)
    before = nn.utils.parameters_to_vector(wrapped.parameters()).detach().clone()
    if scale:
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type, init_scale=scale)
        accelerator.native_amp = True
        monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
    _, optimizer = (
        accelerator.prepare_optimizer(torch.optim.SGD(wrapped.parameters(), lr=1.0))
        for _ in range(2)
    )
    clip = dataclasses.replace(SETTINGS, clip=0.01)
    training.step(accelerator, wrapped, optimizer, batch, np.arange(32), clip)
    return nn.utils.parameters_to_vector(wrapped.parameters()).detach() - before


def test_a_scaled_gradient_is_clipped_at_its_true_length(monkeypatch: pytest.MonkeyPatch):
    """Once scaled back: not at 1,024 times its length, and not twice for two optimisers."""
    plain, scaled = (clipped_update(scale, monkeypatch) for scale in (0, 1024.0))
    assert plain.norm().item() == pytest.approx(0.01, rel=1e-3)  # it was longer than that
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-7)


def test_the_best_epoch_is_restored_and_patience_stops_the_run():
    metrics = iter([0.5, 0.6, 0.9, 0.7, 0.6, 0.5, 0.4])  # the first is before training
    seen: list[torch.Tensor] = []

    def scripted(predict: training.Predict) -> dict[str, float]:
        seen.append(torch.from_numpy(predict(inputs, ROWS)))
        return {"auc": next(metrics)}

    patient = dataclasses.replace(SETTINGS, max_epochs=6, patience=2)
    _, fitted = train(patient, evaluate=scripted)
    assert (fitted.record.best, fitted.record.best_epoch) == ({"auc": 0.9}, {"auc": 1})
    assert len(fitted.record.epochs) == 4  # two epochs without a better value
    restored = torch.from_numpy(fitted.predict(inputs, ROWS))
    assert torch.equal(restored, seen[2])
    assert not torch.equal(restored, seen[4])


def test_each_metric_keeps_its_own_best_state_and_the_last_one_to_rise_keeps_the_run_going(
    tmp_path,
):
    def scripted() -> Callable[[training.Predict], dict[str, float]]:
        values = iter([(0, 0), (0.9, 0.1), (0.5, 0.3), (0.5, 0.2), (0.5, 0.2), (1.0, 0.2)])

        def evaluate(predict: training.Predict) -> dict[str, float]:
            seen.append(predict(inputs, ROWS))
            return dict(zip("ab", next(values), strict=True))

        return evaluate

    patient = dataclasses.replace(SETTINGS, max_epochs=6, patience=2)
    seen: list[np.ndarray] = []
    _, fitted = train(patient, evaluate=scripted(), monitors=("a", "b"))
    assert (fitted.record.best, len(fitted.record.epochs)) == ({"a": 0.9, "b": 0.3}, 4)
    for monitor, at in (("b", 2), ("a", 1)):
        fitted.choose(monitor)
        np.testing.assert_array_equal(fitted.predict(inputs, ROWS), seen[at])
    assert fitted.selection("b")["epoch"] == 2


# --- epochs that are training only ----------------------------------------------------------------
def told(*values: float, seen: list[np.ndarray] | None = None) -> Callable[..., dict[str, float]]:
    """Validation by a script: a value before training, then one per epoch."""
    metrics = iter(values)

    def evaluate(predict: training.Predict) -> dict[str, float]:
        if seen is not None:
            seen.append(predict(inputs, ROWS))
        return {"auc": next(metrics)}

    return evaluate


def test_epochs_before_the_least_number_neither_choose_the_state_nor_count_for_patience():
    seen: list[np.ndarray] = []
    late = dataclasses.replace(SETTINGS, max_epochs=9, patience=2, min_epochs=4)
    values = (0.5, 0.9, 0.8, 0.7, 0.5, 0.6, 0.5, 0.55, 0.8, 0.9)
    _, fitted = train(late, evaluate=told(*values, seen=seen))
    assert (fitted.record.best, fitted.record.best_epoch) == ({"auc": 0.6}, {"auc": 4})
    assert len(fitted.record.epochs) == 7  # two epochs after the best of those that count
    assert fitted.selection()["epoch"] == 5
    np.testing.assert_array_equal(fitted.predict(inputs, ROWS), seen[5])


def test_the_epoch_of_the_least_number_is_the_first_that_can_be_the_best():
    only = dataclasses.replace(SETTINGS, max_epochs=3, patience=1, min_epochs=3)
    _, fitted = train(only, evaluate=told(0.5, 0.9, 0.8, 0.1))
    assert (fitted.record.best, fitted.record.best_epoch) == ({"auc": 0.1}, {"auc": 2})
    texts = training.describe(training.Record(("auc",), epochs=[{"loss": 1.0}]))
    assert texts == "too early to choose"


@pytest.mark.parametrize("steps", [6, 22, 25])
def test_a_run_with_a_least_number_of_epochs_is_resumed_with_the_same_bytes(
    steps: int, tmp_path: Path
):
    """Killed long before anything was chosen, right at the first choice, and after it."""
    late = dataclasses.replace(SETTINGS, min_epochs=3)
    whole, fitted = train(late)
    assert fitted.record.best_epoch["auc"] >= 2
    checkpoint = tmp_path / "run.ckpt.safetensors"
    with pytest.raises(Killed):
        train(late, checkpoint=checkpoint, checkpoint_seconds=0, progress=KillAt(steps))
    resumed, again = train(late, checkpoint=checkpoint, progress=(watch := KillAt(0)))
    assert any("resumed at epoch" in note for note in watch.notes)
    assert same(whole, resumed) and fitted.record == again.record


@pytest.mark.parametrize(("most", "least"), [(0, 0), (2, 3)])
def test_a_fit_of_which_no_epoch_could_be_chosen_is_refused(most: int, least: int):
    with pytest.raises(ValueError, match=f"max_epochs must be at least {max(1, least)}.* {most} "):
        Fit(lr=0.1, batch_size=1, max_epochs=most, patience=1, min_epochs=least)


def test_a_kept_stage_is_known_by_its_settings_and_those_of_before_stay_valid(tmp_path: Path):
    """The first name was computed before there was a least number of epochs."""
    run = Run("toy", "mf", "toy", SETTINGS, 0, "f00d")
    job = Job(run, tmp_path, tmp_path, 1e9, Progress(quiet=True))
    names = []
    for least in (0, 2, 3):
        training.seed_everything(0, "model")
        fit = dataclasses.replace(SETTINGS, min_epochs=least)
        model, what = MF(20, 20, 8, 0.1), {"stage": "toy"}
        accelerator = training.make_accelerator()
        fitted = stages.stage(job, accelerator, model, what, pointwise, batch, ROWS, evaluate, fit)
        names.append(fitted.id)
    assert names[0] == "e18996f54912b925acbc" and len(set(names)) == 3
    assert {path.stem for path in tmp_path.glob("stages/*")} == set(names)


def test_a_prediction_may_have_several_columns():
    class Two(MF):
        def score(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            return torch.stack([users, items], 1).float()

    _, fitted = train(
        model_class=Two,
        loss=lambda model, **rest: MF.score(model, rest["users"], rest["items"]),
        evaluate=lambda predict: {"auc": 1.0},
    )
    table = fitted.predict(inputs, ROWS)
    np.testing.assert_array_equal(table[:, 0], inputs(np.arange(ROWS))["users"].numpy())


def test_a_loss_that_is_not_finite_stops_the_run_with_its_place():
    def broken(model: MF, labels: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        return pointwise(model, labels, **rest) * float("inf")

    looked: list[float] = []

    def evaluate(predict: object) -> dict[str, float]:
        looked.append(0.5)
        return {"auc": 0.5}

    with pytest.raises(FloatingPointError, match="training loss of epoch 1"):
        train(loss=broken, evaluate=evaluate)
    assert len(looked) == 1  # before the first step: a broken model is not evaluated


def test_a_broken_metric_fails_before_the_first_step():
    def step(*_: object) -> None:
        pytest.fail("a step was made")

    with pytest.raises(FloatingPointError, match="before training"):
        train(evaluate=lambda predict: {"auc": float("nan")}, batch=step)


def test_every_epoch_sees_each_row_once_in_an_order_of_its_own(tmp_path: Path):
    def seen(**options: object) -> list[list[int]]:
        rows: list[int] = []

        def watched(index: np.ndarray) -> dict[str, torch.Tensor]:
            rows.extend(index.tolist())
            return batch(index)

        train(batch=watched, **options)
        return [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]

    epochs = seen()
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * SETTINGS.max_epochs
    assert len({tuple(epoch) for epoch in epochs}) == SETTINGS.max_epochs
    assert seen(checkpoint=tmp_path / "x.ckpt.safetensors", checkpoint_seconds=0) == epochs


def test_the_cosine_schedule_warms_up_and_ends_near_zero():
    settings = dataclasses.replace(SETTINGS, lr=1.0, warmup=4, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for step in range(20):
        training.set_lr(optimizer, settings, step, 20)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] < 0.02


def test_frozen_parameters_stay_and_are_left_out_of_the_checkpoint(tmp_path: Path):
    from safetensors import safe_open

    training.seed_everything(0, "model")
    model = MF(20, 20, 8, 0.1)
    model.items.weight.requires_grad_(False)
    before = model.items.weight.clone()
    path = tmp_path / "run.ckpt.safetensors"
    training.fit(
        training.make_accelerator(),
        model,
        pointwise,
        batch,
        ROWS,
        evaluate,
        SETTINGS,
        seed=0,
        checkpoint=path,
        checkpoint_seconds=0,
    )
    assert torch.equal(model.items.weight, before)
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(("model/", "optimizer/"))]  # noqa: SIM118
    assert any("users.weight" in name for name in names)
    assert not any("items.weight" in name for name in names)
