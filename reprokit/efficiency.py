"""Table IV of ExplainRec: how long a system trains, how long one answer takes, how much memory.

Each system is trained again in a process of its own, with the settings of its row in Table I and
one process whatever the launch: nothing of an earlier run is reused but what is frozen (`FROZEN`).

Training    from the first optimiser step to the end of the last `training.fit`, its validations
            included. Reading the data and encoding items are not: they come before, and encoding
            in between is taken off.
Latency     of one query, a user and an item, alone: the median (`recommending.Meter`).
Memory      the most that the process held at once: resident memory, on CUDA what PyTorch allocated
            on the device. Features that a frozen encoder makes are made by an earlier process.

These are measurements: two runs on one machine differ by some percent, and on two machines by
anything, so no cell is held against print. The paper names neither its machine nor its method.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from reprokit.datasets import DataError
from reprokit.progress import Progress
from reprokit.provenance import environment, peak_memory
from reprokit.runs import (
    Estimate,
    Job,
    RequestError,
    Result,
    Run,
    System,
    Unavailable,
    setting,
    write_json,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FROZEN = ("features", "captions", "candidates", "negatives", "tokens", "asked", "calls")
"""Folders of the results that a measured process shares: what frozen models made, drawn candidates
and prompts in tokens. Never `stages` and `runs`: all training is done again."""
START_SECONDS = 30.0
"""Upper bound for starting two processes."""
TOLD = {"unavailable": Unavailable, "request": RequestError, "data": DataError}
"""Errors of a measured process that say in one line what is wrong."""


@dataclass(frozen=True)
class EfficiencySettings:
    """What is measured, and how."""

    of: str = field(
        default="tallrec", metadata={"why": "the row's", "named": True, "settable": False}
    )
    queries: int = setting(30, "open in the paper; the median of so many is steady")
    warmup: int = setting(5, "ours; the first queries fill caches and are not counted")
    measured: Any = field(
        default=None, metadata={"why": "as in Table 1, where the reason stands", "settable": False}
    )
    """Settings of the measured system; `Measuring.configure` fills them in."""
    revision: int = field(
        default=0, metadata={"why": "of the measured system's code", "settable": False}
    )

    def __post_init__(self) -> None:
        if self.queries < 1 or self.warmup < 0:
            raise ValueError(
                f"expected queries >= 1 and warmup >= 0, got {self.queries} and {self.warmup}"
            )


@dataclass(frozen=True)
class Measuring(System):
    """A system whose runs measure other systems of its paper."""

    module: str = ""
    """Where `SYSTEMS` stand, by its import name."""

    def other(self, name: str) -> System:
        """The measured system."""
        systems: Mapping[str, System] = import_module(self.module).SYSTEMS
        return systems[name]

    def configure(self, dataset: str, preset: str, chosen: Mapping[str, Any]) -> Any:
        """Settings that are not our own, and the models that the user named, are the measured
        system's; models that it does not have are left out. What the user set of the measured
        system stands under "measured", by name, and wins."""
        ours = {item.name for item in fields(EfficiencySettings)}
        plain = super().configure(dataset, preset, {k: v for k, v in chosen.items() if k in ours})
        other, typed = self.other(plain.of), {"llm": self.backbone, **self.encoders}
        theirs = {"llm": other.backbone, **other.encoders}
        rest = {k: v for k, v in chosen.items() if k not in ours and k not in typed.values()}
        for kind, key in typed.items():
            if key in chosen and theirs.get(kind):
                rest[theirs[kind]] = chosen[key]
        measured = other.configure(dataset, preset, rest | dict(chosen.get("measured") or {}))
        return replace(plain, measured=measured, revision=other.revision)

    def pretrained(self, settings: Any) -> dict[str, str]:
        return self.other(settings.of).pretrained(settings.measured)


def efficiency(module: str) -> Measuring:
    """The system "efficiency" of a paper, whose `SYSTEMS` stand in `module`."""

    def estimate(settings: Any, sizes: Mapping[str, int]) -> Estimate:
        system: System = import_module(module).SYSTEMS[settings.of]
        bound = system.estimate(settings.measured, sizes)
        return Estimate(START_SECONDS + bound.total, bound.memory, bound.disk)

    return Measuring(
        EfficiencySettings,
        lambda job: execute(job, module),
        estimate,
        seeded=False,
        presets={"demo": {"queries": 10, "warmup": 2}},
        reasons={"demo": "few, for a minute on a laptop"},
        backbone="llm",
        encoders={"text": "text_encoder", "image": "image_encoder"},
        module=module,
    )


# --- the command's side -------------------------------------------------------------------------
def execute(job: Job, module: str) -> Result:
    """Measure the system that the run names: `train_hours`, `latency_ms`, `memory_gb`.

    One measurement at a time, whatever else the command's other processes and other commands with
    the same results do. Raises what the measured process says, or how it ended as RuntimeError.
    """
    free_device()
    if int(os.environ.get("RANK", 0)):
        while going(True):
            pass
        return Result({})
    try:
        with own_turn(job.folder / ".locks" / "efficiency.lock"):
            return measured(job, module)
    finally:
        going(False)


def free_device() -> None:
    """Give back what earlier runs of this process left on the device: the measured one needs it."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


LOCK_SECONDS = 1.0
"""Between two tries."""


@contextmanager
def own_turn(path: Path) -> Iterator[None]:
    """As `runs.alone`, but the other processes of the launch are kept going during the wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        while not locked(file):
            going(True)
            time.sleep(LOCK_SECONDS)
        yield


def locked(file: IO[bytes]) -> bool:
    """Whether the lock is ours now. Where the system or the disk has none, nobody waits."""
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def going(still: bool) -> bool:
    """Whether the first process is still at it. All processes of a launch ask again and again: one
    that waited for hours at one place would be taken for lost."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return still
    import torch
    from accelerate.utils import broadcast

    from reprokit.training import make_accelerator

    told = torch.tensor([float(still)], device=make_accelerator().device)
    return bool(broadcast(told).item())


def measured(job: Job, module: str) -> Result:
    """The result of two processes: the first makes the features of frozen encoders, where the
    system reads any, and the second is measured."""
    settings: EfficiencySettings = job.run.settings
    request = {
        "module": module,
        "run": job.run.identity | {"system": settings.of, "settings": asdict(settings.measured)},
        "data_dir": str(job.data_dir.absolute()),
        "queries": settings.queries,
        "warmup": settings.warmup,
        "offline": os.environ.get("REPROKIT_OFFLINE", "") == "1",
    }
    folder = job.folder.absolute() / ".measured" / job.run.id
    encodes = {"text", "image", "caption"} & set(job.run.pretrained)
    encoded = ask(request | {"prepare": True}, job, folder) if encodes else {}
    found = ask(request | {"prepare": False}, job, folder)
    metrics = {
        "train_hours": found["train_seconds"] and found["train_seconds"] / 3600,
        "latency_ms": found["latency_ms"],
        "memory_gb": found["memory"] / 1e9 if found["memory"] else None,  # 0: not known
        "encoding_seconds": encoded.get("encoding_seconds"),
    }
    return Result(
        {name: value for name, value in metrics.items() if value is not None},
        selection={"none": "nothing is chosen: these are measurements"},
        data=found["machine"],
        deviations=(f"measured on {machine_name(found['machine'])}",),
        notes=tuple(told(settings, found, encoded)),
    )


def told(
    settings: EfficiencySettings, found: Mapping[str, Any], encoded: Mapping[str, Any]
) -> list[str]:
    """One line of how it was measured, and one of what the training time leaves out."""
    machine = found["machine"]
    memory = "resident memory of the process"
    if machine["device"] != "cpu":
        memory = "memory that PyTorch allocated on the device"
    lines = [
        f"measured on {machine_name(machine)}, each system trained from nothing in one process of "
        f"its own, threads: {machine['threads']}. Training: from the first optimiser step to "
        f"the end of training, validation included. Inference: one user and item at a time, the "
        f"median of {settings.queries} after {settings.warmup} that do not count. Memory: the most "
        f"{memory}. Another measurement gives other numbers"
    ]
    if encoded:
        seconds = encoded["encoding_seconds"]
        took = f"took {seconds:,.1f} s" if seconds is not None else "had been done by another run"
        lines.append(f"{settings.of}: encoding its items {took}, no part of its training time")
    return lines


def machine_name(machine: Mapping[str, Any]) -> str:
    parts = [] if machine["device"] == "cpu" else [machine["device"]]
    parts.append(f"{machine['processor']} ({machine['cores']} cores)")
    if machine["memory"]:
        parts.append(f"{machine['memory'] / 1e9:.0f} GB of memory")
    return ", ".join(parts)


def ask(request: Mapping[str, Any], job: Job, folder: Path) -> dict[str, Any]:
    """Start a process that answers a request, in a results folder that is new but for `FROZEN`."""
    shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed
    folder.mkdir(parents=True)
    try:
        for name in FROZEN:
            (job.folder.absolute() / name).mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(job.folder.absolute() / name, target_is_directory=True)
        log, answer = folder / "log.txt", folder / "answer.json"
        text = json.dumps({**request, "folder": str(folder), "answer": str(answer)})
        code = run_child(text, log, job.progress)
        if not answer.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
            raise RuntimeError(
                f"the measured process failed: {ending(code)}; the last that it printed: {last}"
            )
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for empty in (folder.parent, *(job.folder / name for name in FROZEN)):
            with suppress(OSError):
                empty.rmdir()
    for kind, error in TOLD.items():
        if kind in found:
            raise error(found[kind])
    return found


def ending(code: int) -> str:
    """How a process ended, by what `Popen.wait` returns."""
    if code >= 0:
        return f"exit status {code}"
    names = {one.value: one.name for one in signal.Signals}
    return f"ended by {names.get(-code, f'signal {-code}')}"


def run_child(request: str, log: Path, progress: Progress) -> int:
    """Start a process, show what it is at, and return its exit status. It ends with this one."""
    command = [sys.executable, "-m", "reprokit.efficiency"]
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=child_environment()
        )
    assert child.stdin is not None
    try:
        child.stdin.write(request.encode() + b"\n")
        child.stdin.flush()  # and left open: its end tells the child that we are gone
        while True:
            try:
                return child.wait(1)
            except subprocess.TimeoutExpired:
                going(True)
                show(log, progress)
    except BrokenPipeError:  # it failed before it read
        return child.wait()
    finally:
        child.kill()
        child.wait()
        with suppress(BrokenPipeError):  # what it did not read
            child.stdin.close()


LAUNCHED = re.compile(
    "(RANK|WORLD_SIZE|LOCAL_.*|GROUP_.*|ROLE_.*|MASTER_.*|TORCHELASTIC_.*|ACCELERATE_.*|FSDP_.*)"
)
"""Variables by which a launcher tells a process that there are others."""


def child_environment() -> dict[str, str]:
    """Ours without what a launcher set, but for the precision."""
    kept = {k: v for k, v in os.environ.items() if not LAUNCHED.fullmatch(k)}
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision:
        kept["ACCELERATE_MIXED_PRECISION"] = precision
    places = [str(Path(__file__).parent.parent), *filter(None, [kept.get("PYTHONPATH", "")])]
    return kept | {"PYTHONPATH": os.pathsep.join(places)}


STEP = re.compile(r"step (\d+) of at most (\d+), (.*)")


def show(log: Path, progress: Progress) -> None:
    """Pass on the last step that the measured process printed."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        found = STEP.findall(file.read().decode("utf-8", "replace"))
    if found:
        done, total, text = found[-1]
        progress.start_steps(int(total))
        progress.step(int(done), text)


# --- the measured process -----------------------------------------------------------------------
class Ready(BaseException):
    """The first step is due: no handler of errors may take it for one."""


class Watch:
    """Stands in for functions of `training` and `features`, and looks at the clock."""

    def __init__(self, prepare: bool) -> None:
        from reprokit import features, training

        self.prepare = prepare
        self.first: float | None = None
        """When the first optimiser step began."""
        self.last: float | None = None
        """When training last ended."""
        self.encoding: float | None = None
        """Seconds in which frozen encoders made features; None: all had been made before."""
        self.between = self.lately = 0.0
        """Of these, after the first step and before training last ended; and since then."""
        self.calls: dict[str, Callable[..., Any]] = {
            "step": training.step,
            "fit": training.fit,
            "make": features.make,
        }
        for module, name in ((training, "step"), (training, "fit"), (features, "make")):
            setattr(module, name, getattr(self, name))

    def step(self, *given: Any, **named: Any) -> Any:
        if self.prepare:
            raise Ready
        if self.first is None:
            self.first = time.perf_counter()
        return self.calls["step"](*given, **named)

    def fit(self, *given: Any, **named: Any) -> Any:
        fitted = self.calls["fit"](*given, **named)
        self.last = time.perf_counter()
        self.between, self.lately = self.between + self.lately, 0.0
        return fitted

    def make(self, *given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        self.calls["make"](*given, **named)
        seconds = time.perf_counter() - started
        self.encoding = (self.encoding or 0.0) + seconds
        if self.first is not None:
            self.lately += seconds

    @property
    def train_seconds(self) -> float | None:
        """None where nothing was trained."""
        if self.first is None or self.last is None:
            return None
        return self.last - self.first - self.between


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the system that a request names, and measure it."""
    watch = Watch(request["prepare"])
    from reprokit import recommending

    system: System = import_module(request["module"]).SYSTEMS[request["run"]["system"]]
    given = {key: retupled(value) for key, value in request["run"]["settings"].items()}
    run = Run(**{**request["run"], "settings": system.settings(**given)})
    meter = recommending.METER = recommending.Meter(request["queries"], request["warmup"])
    job = Job(
        replace(run, revision=system.revision),
        Path(request["data_dir"]),
        folder=Path(request["folder"]),
        checkpoint_seconds=float("inf"),  # none: writing them is no part of training
        progress=Progress(runs=1),
    )
    try:
        system.execute(job)
    except Ready:
        return {"encoding_seconds": watch.encoding}
    return {
        "train_seconds": watch.train_seconds,
        "encoding_seconds": watch.encoding,
        "latency_ms": meter.median_ms if meter.latency_ms else None,
        "memory": held_at_once(),
        "machine": machine(),
    }


def retupled(value: Any) -> Any:
    """A value as settings have it: JSON makes lists of tuples."""
    return tuple(map(retupled, value)) if isinstance(value, list) else value


def held_at_once() -> int:
    """The most bytes that this process held: on the device where there is CUDA, else resident."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_memory()


def machine() -> dict[str, Any]:
    """Processor, cores, memory in bytes (0: not known), device, threads, and PyTorch's version."""
    import torch

    facts = environment()
    pages = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ()))
    return {
        "processor": facts["processor"] or "an unknown processor",
        "cores": facts["cores"],
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages else 0,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "torch": facts["versions"]["torch"],
    }


def end_with(pipe: int) -> None:
    """Leave when the other end of a pipe is gone: a killed command leaves nobody at work."""

    def wait() -> None:
        while os.read(pipe, 1):  # not through a buffer, whose lock would be held at our own end
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Answer the request on standard input, in the file that it names."""
    request = json.loads(sys.stdin.buffer.readline())
    end_with(sys.stdin.fileno())
    if request["offline"]:
        from reprokit.cli import close_network

        close_network()
    serve(request)


def serve(request: Mapping[str, Any]) -> None:
    try:
        found = answer(request)
    except tuple(TOLD.values()) as error:
        kind = next(kind for kind, one in TOLD.items() if isinstance(error, one))
        found = {kind: " ".join(str(error).split())}
    write_json(Path(request["answer"]), found)


if __name__ == "__main__":
    main()
