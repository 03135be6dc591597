"""The benchmark of the sequence models at toy size, on generated sequences."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from itertools import count, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT, needs

from reprokit.crossdata import CDSR_FILES

SMALL = "--dim 8 --inner 16 --batch 32 --repeats 1 --features 4"
TOY = f"--data generated --items 200 --sequences 30 {SMALL} --every 4 --valid-rows 10 --whole 8"


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "sequence_speed", ROOT / "benchmarks/sequence_speed.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def run(speed: ModuleType, *more: str) -> int:
    status: int = speed.main([*TOY.split(), *more])
    return status


def test_both_forms_give_the_same_and_each_line_has_its_ratio(
    speed: ModuleType, capsys: pytest.CaptureFixture[str]
):
    assert run(speed, "--parts", "steps") == 0
    printed = capsys.readouterr().out
    timed = re.findall(r"^\| (\D.+) \| [\d.]+ \| [\d.]+ to [\d.]+ \| ([\d.]+)x \|", printed, re.M)
    assert [name for name, _ in timed][:2] == ["straightforward", "ours"] and len(timed) == 3
    assert timed[0][1] == "1.00"
    assert re.search(r"goal 1\.7x: (met|missed) with " + timed[1][1], printed)
    same = re.search(r"Both forms give the same: .* difference (\S+), .* largest, (\S+),", printed)
    assert same and float(same[1]) <= 1e-5 and float(same[2]) <= 1e-4
    assert "not measured side by side: RecBole 1.2.1 took 0.99 s" in printed


def test_a_reference_that_picks_another_state_fails_the_proof(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(speed, "last_step", lambda states, items: states[:, 0])
    assert run(speed, "--parts", "steps") == 1
    assert "NOT give the same" in capsys.readouterr().out


@pytest.mark.parametrize("change", [lambda zero: 2 * zero, lambda zero: zero.abs().sqrt()])
def test_gradients_that_are_wrong_or_no_number_fail_the_proof(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, change: Any
):
    right = speed.last_loss

    def spoilt(*args: Any, **more: Any) -> torch.Tensor:
        loss = right(*args, **more)
        return loss.detach() + change(loss - loss.detach())  # the loss is as it was

    monkeypatch.setattr(speed, "last_loss", spoilt)
    assert run(speed, "--parts", "steps") == 1


def test_times_to_a_level_are_those_of_the_first_check_that_reached_it(
    speed: ModuleType, capsys: pytest.CaptureFixture[str]
):
    prefix = [speed.Check(*of) for of in ((5, 10.0, 1.0), (10, 20.0, 3.0), (15, 30.0, 2.0))]
    one_pass = [speed.Check(*of) for of in ((1, 4.0, 0.5), (2, 8.0, 2.0), (3, 16.0, 3.5))]
    speed.compare(prefix, one_pass, "whole", "prefixes", plain_step=8.0)
    printed = capsys.readouterr().out
    assert "| 1.000 | 10.0 s, step 5 | 8.0 s, step 2 | 1.25x |" in printed
    assert "| 3.000 | 20.0 s, step 10 | 16.0 s, step 3 | 1.25x |" in printed
    assert "| 2.000 |" not in printed  # no new best
    assert "prefix rows: goal 5.0x: missed with 1.25x" in printed
    assert "80 s for the same 10 steps" in printed and "goal 5.0x: met with 5.00x" in printed
    speed.compare(prefix, one_pass[:2], "whole", "prefixes", plain_step=8.0)
    assert "MRR 3.000 not reached in 8.0 s, best 2.000" in capsys.readouterr().out


def test_one_pass_trains_until_it_has_what_prefix_rows_reached_and_validation_is_not_timed(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """By a clock that ticks when it is read: a step takes 1 s, a validation 100."""
    clock, found = count(), iter([2.0, 1.0, 0.5, 1.9, 2.5])

    def slow(setup: Any, wrapped: Any) -> float:
        list(islice(clock, 100))
        return next(found)

    monkeypatch.setattr(speed, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(speed.Setup, "mrr", slow)
    assert run(speed, "--parts", "passes", "--over", "all") == 0
    printed = capsys.readouterr().out
    checks = re.findall(r"step (\d+), epoch [\d.]+, ([\d.]+) s of .* MRR ([\d.]+)$", printed, re.M)
    assert [float(mrr) for *_, mrr in checks] == [2.0, 1.0, 0.5, 1.9, 2.5]
    assert next(found, None) is None
    assert all(float(seconds) == int(step) for step, seconds, _ in checks)
    budget = re.search(r"(\d+) steps at most", printed)
    assert budget and [int(step) for step, *_ in checks[:2]] == [4, int(budget[1])]
    ratio = 4 / float(checks[-1][1])
    assert (
        f"to MRR 2.000 beside ours on prefix rows: goal 5.0x: missed with {ratio:.2f}x" in printed
    )


def test_the_time_limit_ends_a_form_that_never_gets_there(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = iter([2.0, 1.0])
    monkeypatch.setattr(speed.Setup, "mrr", lambda setup, wrapped: next(found))
    assert run(speed, "--parts", "passes", "--over", "all", "--minutes", "0") == 0
    assert "MRR 2.000 not reached" in capsys.readouterr().out


def test_validation_ranks_held_out_rows_and_training_does_not_know_their_targets(
    speed: ModuleType,
):
    setup = speed.prepare(speed.parser().parse_args(TOY.split()))
    held, at = setup.valid
    assert len(at) == 10 and held.negatives.shape == (15, 999) and len(setup.data.test) == 0
    data = setup.data
    for row in range(15):
        whole = data.valid.items[data.valid.starts[row] : data.valid.starts[row + 1]]
        known = data.train.items[data.train.starts[row] : data.train.starts[row + 1]]
        assert np.array_equal(known, whole[:-1])
    assert 0.1 < setup.mrr(speed.training.Objective(setup.model(), None)) <= 100


@pytest.mark.parametrize("modalities", [1, 3])
def test_all_logits_are_what_the_losses_go_through(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, modalities: int
):
    from reprokit import emf

    right, seen = emf.softmax_nll, []

    def counting(views: Any, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        seen.append(sum(4 * len(states) * len(vectors) for states, vectors in views))
        return right(views, targets, weights)

    monkeypatch.setattr(emf, "softmax_nll", counting)
    options = speed.parser().parse_args(SMALL.split())
    made = speed.train(options, "emf", 50, 6, modalities)
    assert len(seen) == 6 and made["logits"] == pytest.approx(sum(seen) / 2 / 1e6)  # two steps


def test_memory_is_measured_in_processes_of_their_own(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The commands run here, in this process, to save the imports."""

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert Path(command[1]).name == "sequence_speed.py"
        before = capsys.readouterr().out
        assert speed.main(command[2:]) == 0
        own = capsys.readouterr().out
        kept.append(before)
        asked.append(json.loads(own))
        return subprocess.CompletedProcess(command, 0, own)

    kept: list[str] = []
    asked: list[dict[str, float]] = []
    monkeypatch.setattr(subprocess, "run", here)
    sizes = "--parts memory --memory-items 100 400 --memory-batches 2 8"
    assert run(speed, *sizes.split()) == 0
    printed = "".join([*kept, capsys.readouterr().out])
    assert len(asked) == 2 * 2 * 2 + 3
    assert all(0 < 0.5 * found["before"] < found["peak"] for found in asked)  # what tests gave back
    assert all(found["fixed"] > 0 and found["logits"] > 0 for found in asked)
    assert len(re.findall(r"^\| (LLM-EMF|SASRec), .* items, \d x 15", printed, re.M)) == len(asked)
    assert len(re.findall("goal at most 10% of those: (?:met|missed)", printed)) == 2


def test_what_grows_with_the_product_is_told_from_what_grows_with_either(
    speed: ModuleType, capsys: pytest.CaptureFixture[str]
):
    options = speed.parser().parse_args(
        ["--memory-items", "10", "40", "--memory-batches", "2", "8"]
    )
    found = {
        ("emf", items, batch, views): {"rest": 3.0 * items + 5 * batch, "logits": items * batch}
        for items in (10, 40)
        for batch in (2, 8)
        for views in (1, 3)
    }
    speed.growth(found, options)
    printed = capsys.readouterr().out
    assert "the rest grows by +120 MB, of which +0 MB come" in printed
    assert "all logits by +300 MB, of which +180 MB" in printed and "missed" not in printed
    for of in found.values():
        of["rest"] = of["logits"]
    speed.growth(found, options)
    assert capsys.readouterr().out.count("missed") == 2


def test_absent_data_are_generated_with_the_reason_or_refused_in_one_line(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    options = speed.parser().parse_args(["--data-dir", str(tmp_path), "--sequences", "10"])
    data, described = speed.sequences(options)
    assert data.name == "generated" and "generated sequences, because" in described
    assert str(tmp_path) in described and "\n" not in described
    assert speed.main(["--data", "food-kitchen", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(speed, "--dim", "9") == 2 and run(speed, "--max-len", "5") == 2
    assert run(speed, "--items", "7") == 2 and run(speed, "--repeats", "0") == 2
    assert capsys.readouterr().err.count("\n") == 4


@needs(*(f"cdsr/Food-Kitchen/{name}" for name in CDSR_FILES))
def test_both_forms_give_the_same_on_the_real_sequences(
    speed: ModuleType, capsys: pytest.CaptureFixture[str]
):
    assert speed.main([*SMALL.split(), "--data-dir", str(DATA), "--parts", "steps"]) == 0
    printed = capsys.readouterr().out
    assert "data: Food-Kitchen in" in printed and "64,093 items, width 8" in printed
