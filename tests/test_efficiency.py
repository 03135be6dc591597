"""Table IV: systems measured in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from reprokit import ccf_llm, cli, efficiency, reproduce
from reprokit.data import Source
from reprokit.efficiency import EfficiencySettings, Watch
from reprokit.features import text_features
from reprokit.plan import Request, plan
from reprokit.progress import Progress
from reprokit.reproduce import DONE, INCOMPLETE
from reprokit.runs import (
    Estimate,
    Job,
    RequestError,
    Result,
    Run,
    System,
    Unavailable,
    alone,
    setting,
)
from reprokit.tables import Column, Row, Table


# --- what is measured: this module stands in for a paper's ---------------------------------------
@dataclass(frozen=True)
class ToySettings:
    llm: str = setting("none", "a test")
    texts: str = setting("tiny", "a test")
    steps: int = setting(2, "a test")
    sizes: tuple[int, ...] = setting((3, 4), "a test")
    fault: str = setting("", "a test")


@dataclass(frozen=True)
class PlainSettings:
    rate: float = setting(0.1, "a test")


def toy(job: Job) -> Result:
    """Encodes two texts, trains for some steps, and answers in 2 ms; or goes wrong as told."""
    from reprokit import recommending, training

    s = job.run.settings
    assert isinstance(s.sizes, tuple) and job.run.system == "toy" and job.run.revision == 7
    assert not (job.folder / "stages").exists()
    if s.fault == "unavailable":
        raise Unavailable("it has\nno key")
    if s.fault == "request":
        raise RequestError("no such encoder")
    if s.fault == "crash":
        raise ZeroDivisionError("nothing to\ndivide by")
    if s.fault == "sleep":
        assert not os.environ.get("WORLD_SIZE")
        Path(job.data_dir, "pid").write_text(str(os.getpid()))
        time.sleep(60)
    if s.texts != "none":
        texts = ["a film", "another film"]
        text_features(s.texts, texts, job.folder, Progress(quiet=True), job.run.pretrained["text"])
    (job.folder / "stages").mkdir()
    train(training, s.steps)
    if recommending.METER and s.fault != "silent":
        recommending.METER.measure(lambda pairs: time.sleep(0.002), range_of(50))
    return Result({"test/auc": 0.9})


def train(training: Any, steps: int) -> None:
    """A loop of the shape of `training.fit`."""
    if steps:
        training.fit.__self__.calls["step"] = lambda: time.sleep(0.05)
        training.fit.__self__.calls["fit"] = lambda: [training.step() for _ in range(steps)]
        training.fit()


class range_of:
    """Pairs of a number, as far as the meter looks at them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def part(self, start: int, end: int) -> Any:
        return range_of(end - start)


def bound(settings: Any, sizes: Any) -> Estimate:
    return Estimate(10.0, 2e9, 3e6, {"shared": 5.0})


SYSTEMS = {
    "toy": System(
        ToySettings,
        toy,
        bound,
        revision=7,
        backbone="llm",
        encoders={"text": "texts"},
        presets={"small": {"steps": 3}},
        reasons={"small": "few"},
        reads=lambda settings: {"text"} if settings.texts != "none" else set(),
    ),
    "plain": System(PlainSettings, toy, bound),
}
MEASURING = efficiency.efficiency("test_efficiency")


def job_of(folder: Path, **changed: Any) -> Job:
    settings = MEASURING.configure("ml-1m", "paper", {"of": "toy", "queries": 4, **changed})
    backbone = "; ".join(f"{k} f00d" for k in MEASURING.pretrained(settings))
    run = Run("ccf_llm", "efficiency", "ml-1m", settings, 0, "f00d", backbone=backbone)
    return Job(run, folder, folder / "out", 20.0, Progress(quiet=True))


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Requests are answered in this process; whether each was one to prepare."""
    from reprokit import features, recommending, training

    asked = []
    for module, name in ((training, "step"), (training, "fit"), (features, "make")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back at the end
    monkeypatch.setattr(recommending, "METER", None)
    real = training.step, training.fit, features.make

    def run_child(text: str, log: Path, progress: Progress) -> int:
        training.step, training.fit, features.make = real
        request = json.loads(text)
        asked.append(request["prepare"])
        try:
            efficiency.serve(request)
        except Exception:
            log.write_text(f"working\n\n{traceback.format_exc()}\n\n")
            return 1
        return 0

    monkeypatch.setattr(efficiency, "run_child", run_child)
    return asked


# --- settings -----------------------------------------------------------------------------------
def test_the_measured_settings_are_those_of_the_systems_own_row():
    found = MEASURING.configure("ml-1m", "small", {"of": "toy", "warmup": 1, "sizes": (1,)})
    assert (found.of, found.queries, found.warmup, found.revision) == ("toy", 30, 1, 7)
    assert found.measured == SYSTEMS["toy"].configure("ml-1m", "small", {"sizes": (1,)})
    assert found.measured.steps == 3 and hash(found) is not None
    assert MEASURING.configure("ml-1m", "demo", {"of": "toy"}).queries == 10
    with pytest.raises(ValueError, match="queries >= 1 and warmup >= 0, got 0 and 5"):
        MEASURING.configure("ml-1m", "paper", {"of": "toy", "queries": 0})


def test_the_models_that_a_user_names_reach_the_measured_system_where_it_has_them():
    typed = {"llm": "org/llm", "text_encoder": "org/texts", "image_encoder": "org/images"}
    found = MEASURING.configure("ml-1m", "paper", {"of": "toy", **typed})
    assert (found.measured.llm, found.measured.texts) == ("org/llm", "org/texts")
    assert MEASURING.pretrained(found) == {"text": "org/texts"}  # all that it reads
    assert (
        MEASURING.configure("ml-1m", "paper", {"of": "plain", **typed}).measured == PlainSettings()
    )


def test_what_the_user_sets_of_a_measured_system_is_measured_and_wins():
    chosen = {"of": "toy", "llm": "org/llm", "warmup": 1, "sizes": (1,)}
    users = {"llm": "org/other", "steps": 9}
    found = MEASURING.configure("ml-1m", "small", {**chosen, "measured": users})
    own = SYSTEMS["toy"].configure("ml-1m", "small", {"sizes": (1,), **users})
    assert found.measured == own and (own.llm, own.steps, found.warmup) == ("org/other", 9, 1)


SET = (
    "tallrec.max_epochs=5", "tallrec.warmup=7", "tallrec.llm=scratch", "explainrec.fusion_lr=0.5",
    "mmgcn.dim=24", "lattice.lr=0.25", "efficiency.warmup=2",
)  # fmt: skip


@pytest.mark.parametrize("preset", ["demo", "small", "paper"])
@pytest.mark.parametrize("chosen", [{}, {"llm": "tiny", "text_encoder": "tiny"}])
def test_table_4_measures_what_table_1_has_whatever_the_user_sets(
    preset: str, chosen: dict[str, str], tmp_path: Path
):
    wanted = Request(
        ("explainrec/table1", "explainrec/table4"),
        preset=preset, overrides=SET, out=tmp_path, data_dir=tmp_path, dry_run=True, offline=True,
        seeds=1, **chosen,
    )  # fmt: skip
    planned = plan(wanted)
    runs = [run for run in planned.runs if run.dataset.endswith("ml-25m")]
    own = {run.system: run.settings for run in runs if not getattr(run.settings, "shots", 0)}
    measuring = [run.settings for run in runs if run.system == "efficiency"]
    assert {one.of: one.measured for one in measuring} == {
        name: own[name] for name in ("tallrec", "explainrec", "mmgcn", "lattice")
    }
    assert {one.warmup for one in measuring} == {2} and own["tallrec"].warmup == 7
    alone = plan(dataclasses.replace(wanted, targets=("explainrec/table4",)))
    assert [run.settings for run in alone.wanted] == measuring


@pytest.mark.parametrize("key", ["of", "revision", "measured", "max_epochs"])
def test_which_system_a_row_measures_is_not_for_the_user_to_set(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--set", f"efficiency.{key}=3", "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(["reproduce", "explainrec/table4", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"efficiency has no setting '{key}'" in said
    assert said.rstrip().endswith("It has: queries, warmup.")


def test_the_estimate_has_all_that_is_trained_again():
    settings = MEASURING.configure("ml-1m", "paper", {"of": "toy"})
    found = MEASURING.estimate(settings, {})
    assert (found.seconds, found.memory, dict(found.shared)) == (45.0, 2e9, {})


# --- a measured process -------------------------------------------------------------------------
def test_a_measured_system_leaves_nothing_but_features(inside: list[bool], tmp_path: Path):
    result = MEASURING.execute(job_of(tmp_path, steps=4))
    assert inside == [True, False]
    metrics = result.metrics
    assert 0.2 <= metrics["train_hours"] * 3600 < 1  # four steps, without encoding and start
    assert 2 <= metrics["latency_ms"] < 50
    assert 0.05 < metrics["memory_gb"] < 4 and metrics["encoding_seconds"] > 0
    assert result.data["cores"] == os.cpu_count() and result.data["torch"] != "absent"
    (deviation,) = result.deviations
    assert deviation.startswith("measured on ") and "cores)" in deviation
    machine, encoding = result.notes
    assert deviation in machine and "the median of 4 after 5" in machine and "\n" not in machine
    assert encoding.startswith("toy: encoding its items took ")
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == [".locks", "features"]
    again = MEASURING.execute(job_of(tmp_path, steps=4))
    assert "encoding_seconds" not in again.metrics
    assert again.notes[1] == (
        "toy: encoding its items had been done by another run, no part of its training time"
    )


def test_memory_that_the_system_does_not_tell_is_no_number(
    inside: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(efficiency, "held_at_once", lambda: 0)
    metrics = MEASURING.execute(job_of(tmp_path, texts="none")).metrics
    assert "memory_gb" not in metrics and metrics["latency_ms"] > 0


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("unavailable", Unavailable, "^it has no key$"),
        ("request", RequestError, "^no such encoder$"),
        (
            "crash",
            RuntimeError,
            "^the measured process failed: exit status 1; the last that it printed: divide by$",
        ),
    ],
)
def test_what_a_measured_process_says_is_said_here(
    fault: str, error: type[Exception], message: str, inside: list[bool], tmp_path: Path
):
    with pytest.raises(error, match=message):
        MEASURING.execute(job_of(tmp_path, texts="none", fault=fault))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".locks"]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("kill -9 $$", "ended by SIGKILL; the last that it printed: step 4 of at most 90, x"),
        ("exit 3", "exit status 3; the last that it printed: step 4 of at most 90, x"),
    ],
)
def test_a_killed_process_is_told_from_what_it_printed_last(
    last: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho step 4 of at most 90, x\n{last}\n")
    python.chmod(0o755)
    monkeypatch.setattr(efficiency.sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=f"^the measured process failed: {words}$"):
        MEASURING.execute(job_of(tmp_path, texts="none"))


def test_signals_without_a_name_are_told_by_their_number():
    assert efficiency.ending(-15) == "ended by SIGTERM"
    assert efficiency.ending(-200) == "ended by signal 200"


def test_the_other_processes_are_kept_going_while_another_command_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fcntl = pytest.importorskip("fcntl")
    told: list[bool] = []
    monkeypatch.setattr(efficiency, "LOCK_SECONDS", 0.0)
    monkeypatch.setattr(efficiency, "measured", lambda *_: Result({"measured": len(told)}))
    (tmp_path / "out/.locks").mkdir(parents=True)
    with (tmp_path / "out/.locks/efficiency.lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def going(still: bool) -> bool:
            told.append(still)
            if len(told) == 3:
                fcntl.flock(other, fcntl.LOCK_UN)
            return still

        monkeypatch.setattr(efficiency, "going", going)
        assert MEASURING.execute(job_of(tmp_path)).metrics == {"measured": 3}
        assert told == [True, True, True, False]
    with alone(tmp_path / "out/stages/efficiency"):  # the lock that commands have always taken
        assert not efficiency.locked((tmp_path / "out/.locks/efficiency.lock").open("ab"))


@pytest.mark.parametrize("initialised", [True, False])
def test_the_devices_memory_is_given_back_before_a_measurement(
    initialised: bool, inside: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    given: list[list[bool]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(list(inside)))
    monkeypatch.setattr(efficiency, "measured", lambda *_: Result({}))
    MEASURING.execute(job_of(tmp_path))
    assert given == ([[]] if initialised else [])


def test_a_measured_process_ends_with_the_one_that_started_it(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; import test_efficiency as t\n"
        "t.MEASURING.execute(t.job_of(Path(sys.argv[1]), texts='none', fault='sleep'))"
    )
    places = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": places, "WORLD_SIZE": "1", "RANK": "0"},
    )
    pid, end = tmp_path / "pid", time.monotonic() + 60
    while not (pid.is_file() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int(pid.read_text())
    assert alive(child) and child != parent.pid
    parent.kill()
    parent.wait()
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_what_the_parent_held_is_not_counted():
    """Linux adds it to ru_maxrss of a process that is started from a large one."""
    held = np.ones(400_000_000 // 8)
    assert 5e6 < in_a_process("print(peak_memory())")[0] < 200e6 and held.all()


def test_the_peak_of_a_process_counts_what_it_gave_back_and_starts_again_where_linux_lets_it():
    before, peak, again = in_a_process(
        "print(peak_memory()); b'x' * 200_000_000; print(peak_memory())",
        "print(peak_memory(restart=True))",
    )
    assert peak > before + 150e6
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert again < before + 50e6


def in_a_process(*lines: str) -> list[int]:
    code = "\n".join(["from reprokit.provenance import peak_memory", *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    return [int(number) for number in done.stdout.split()]


def test_the_last_step_of_a_measured_process_is_shown_here(tmp_path: Path):
    seen: list[Any] = []
    progress = SimpleNamespace(start_steps=seen.append, step=lambda *told: seen.append(told))
    log = tmp_path / "log"
    log.write_text("loading\n")
    efficiency.show(log, progress)  # type: ignore[arg-type]
    assert not seen
    log.write_text(
        "[1/1] : step 4 of at most 90, epoch 1\n[1/1] : step 7 of at most 90, epoch 2, x\n"
    )
    efficiency.show(log, progress)  # type: ignore[arg-type]
    assert seen == [90, (7, "epoch 2, x")]


def test_a_launchers_variables_are_kept_from_a_measured_process(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_USE_FSDP", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    found = efficiency.child_environment()
    assert not {name for name in found if efficiency.LAUNCHED.fullmatch(name)} - {
        "ACCELERATE_MIXED_PRECISION"
    }
    assert found["ACCELERATE_MIXED_PRECISION"] == "bf16" and found["PATH"] == os.environ["PATH"]


# --- the clock ----------------------------------------------------------------------------------
@pytest.fixture
def watch(inside: list[bool], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A watch over a training and an encoding that take no time but a clock's."""
    from reprokit import features, training

    clock = SimpleNamespace(now=100.0)

    def spend(seconds: float, *work: Any) -> None:
        for one in work:
            one()
        clock.now += seconds

    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: clock.now)
    found = Watch(prepare=False)
    found.calls = {"step": lambda: spend(1), "make": lambda: spend(10),
                   "fit": lambda *work: spend(0.5, *work)}  # fmt: skip
    return SimpleNamespace(watch=found, spend=spend, training=training, features=features)


def test_training_is_from_the_first_step_to_the_end_of_the_last_fit_without_encoding(watch: Any):
    step, fit, make = watch.training.step, watch.training.fit, watch.features.make
    make()
    fit(lambda: watch.spend(3), step, step)  # validation before the first step does not count
    assert watch.watch.train_seconds == 2.5
    make()
    watch.spend(4)
    fit(step)
    make()  # after training
    watch.spend(9)
    assert watch.watch.train_seconds == 2.5 + 4 + 1.5
    assert watch.watch.encoding == 30


def test_nothing_trained_has_no_training_time(watch: Any):
    assert watch.watch.train_seconds is None and watch.watch.encoding is None


def test_the_first_process_ends_at_the_first_step_whatever_catches_errors(watch: Any):
    watch.watch.prepare = True
    with pytest.raises(efficiency.Ready):
        try:
            watch.training.step()
        except Exception:
            pytest.fail("taken for an error")


# --- the table ----------------------------------------------------------------------------------
def test_a_table_of_measurements_is_filled_and_never_held_against_print(
    inside: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    columns = (
        Column("Hours", "train_hours", "ml-1m", least=6),
        Column("ms", "latency_ms", "ml-1m", decimals=1),
        Column("GB", "memory_gb", "ml-1m", decimals=1),
    )
    rows = tuple(
        Row(label, "efficiency", {"of": "toy", "texts": "none", "fault": fault, "steps": steps})
        for label, fault, steps in (("A", "", 1), ("B", "silent", 0))
    )
    table = Table("ccf_llm/figure9", "Efficiency", columns, rows, draw="")
    monkeypatch.setattr(ccf_llm, "SYSTEMS", {**ccf_llm.SYSTEMS, "efficiency": MEASURING})
    monkeypatch.setattr(ccf_llm, "TABLES", (table,))
    monkeypatch.setattr(Source, "fingerprint", lambda *arguments: "f00d")
    monkeypatch.setattr("reprokit.plan.differences", lambda *arguments: ())
    wanted = Request(("ccf_llm/figure9",), preset="paper", out=tmp_path, llm="tiny")
    planned = plan(dataclasses.replace(wanted, llm=""))
    assert [run.title for run in planned.wanted] == [
        "ccf_llm efficiency (toy) on ml-1m, seed 0"
    ] * 2
    outcome = reproduce.execute(planned, quiet=True)
    rendered, status = reproduce.assemble(planned, outcome)
    assert (outcome.executed, outcome.failed, status) == (2, {}, INCOMPLETE)
    (first, second) = rendered[0].lines
    assert all(cell.made and cell.unlike.startswith("measured on ") for cell in first.cells)
    assert [cell.made for cell in second.cells] == [False, False, True]
    lines = {(system, name): (value, why) for system, name, value, why in rendered[0].settings}
    assert lines["efficiency (toy)", "steps"] == (
        "1 / 0", "as in Table 1, where the reason stands"
    )  # fmt: skip
    assert lines["efficiency", "queries"][0] == "30"
    outcome = reproduce.execute(plan(dataclasses.replace(wanted, llm="")), quiet=True)
    assert outcome.cached == 2 and reproduce.assemble(planned, outcome)[1] != DONE
    stored = json.loads(next((tmp_path / "runs").glob("*.json")).read_text())
    assert stored["run"]["settings"]["measured"]["sizes"] == [3, 4]
    assert EfficiencySettings().measured is None
