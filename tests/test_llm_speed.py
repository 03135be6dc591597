"""The language-model benchmark at toy size, on generated data."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT

TOY = "--dataset demo --hidden 16 --layers 1 --heads 2 --intermediate 32 --vocab 1000 --repeats 1"
TOY += " --train-rows 32 --rows 80 --users 1"


@pytest.fixture(scope="module")
def llm_speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llm_speed", ROOT / "benchmarks/llm_speed.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


def run(llm_speed: ModuleType, *more: str) -> int:
    status: int = llm_speed.main([*TOY.split(), *more])
    return status


def test_both_forms_give_the_same_and_each_line_has_its_ratio(
    llm_speed: ModuleType, capsys: pytest.CaptureFixture[str]
):
    assert run(llm_speed, "--parts", "training", "scoring", "candidates") == 0
    printed = capsys.readouterr().out
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    timed = [[cell.strip() for cell in line] for line in lines if re.match(r" [\d,.]+ ", line[1])]
    assert len(timed) == 2 + 6 + 2
    assert all(re.fullmatch(r"\d+\.\d\dx", line[3]) for line in timed)
    assert sum(line[3] == "1.00x" and not line[4] for line in timed) == 3  # the references
    differences = [float(line[5]) for line in timed if line[5]]
    assert len(differences) == 1 + 5 + 1 and max(differences) <= 1e-5
    assert [float(goal) for goal in re.findall(r"goal ([\d.]+)x", printed)] == [2.5, 4, 3]
    assert "Both forms give the same" in printed


def test_scores_of_another_position_fail_the_proof(
    llm_speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    states = llm_speed.CoLLM.states

    def early(model: Any, last: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return states(model, last=last - 1, **inputs)

    monkeypatch.setattr(llm_speed.CoLLM, "states", early)
    assert run(llm_speed, "--parts", "scoring") == 1
    assert "NOT give the same" in capsys.readouterr().out


def test_memory_is_measured_in_processes_of_their_own(
    llm_speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The commands run here, in this process, to save the imports; 64 rows, then 256."""

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert Path(command[1]).name == "llm_speed.py"
        assert llm_speed.main(command[2:]) == 0
        printed = capsys.readouterr().out
        asked.append(json.loads(printed.splitlines()[-1]))
        return subprocess.CompletedProcess(command, 0, printed)

    asked: list[dict[str, float]] = []
    monkeypatch.setattr(subprocess, "run", here)
    assert run(llm_speed, "--parts", "memory", "--memory-rows", "64") == 0
    assert [found["rows"] for found in asked] == [64, 256]
    assert all(0 < 0.5 * found["before"] < found["peak"] for found in asked)  # what tests gave back
    assert re.search(r"goal at most 5% more: (met|missed) with [+-]", capsys.readouterr().out)


def test_missing_data_is_one_line(
    llm_speed: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert llm_speed.main(["--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "ratings.dat is missing" in printed.err
