"""What a request would take: time, memory and disk of its runs, before anything is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reprokit.click import REUSED
from reprokit.data import Source
from reprokit.plan import NO_DATA, NO_MODEL, NOT_BUILT, PAPERS, Plan, downloads
from reprokit.progress import duration
from reprokit.rendering import grid
from reprokit.runs import Estimate, RequestError, Run, Store, System, Unavailable


@dataclass(frozen=True)
class Forecast:
    """One line of `--dry-run`."""

    run: Run
    cached: bool
    measured: float | None
    """Seconds that a finished run with another seed took, if it trained all of its stages."""
    estimate: Estimate | None
    """Upper bounds; None where the size of its language model is not known."""
    why_not: str = ""
    """Why it cannot be made, where that is known beforehand."""

    @property
    def seconds(self) -> float | None:
        """Measured, else an upper bound, else not known."""
        bound = self.estimate.total if self.estimate else None
        return bound if self.measured is None else self.measured

    @property
    def needs_data(self) -> bool:
        return self.run.fingerprint == NO_DATA

    @property
    def needs_model(self) -> bool:
        return self.run.backbone == NO_MODEL

    @property
    def state(self) -> str:
        missing = ["data"] * self.needs_data + ["model"] * self.needs_model
        if missing:
            return f"needs {' and '.join(missing)}"
        if self.why_not:
            return "cannot be made"
        return "kept" if self.cached else "to make"


def together(lines: Sequence[Forecast]) -> float:
    """Seconds of some runs; what they share is counted once."""
    bounds = [line.estimate for line in lines if line.estimate and line.measured is None]
    shared = {name: seconds for bound in bounds for name, seconds in bound.shared.items()}
    measured = sum(line.measured or 0.0 for line in lines)
    return measured + sum(bound.seconds for bound in bounds) + sum(shared.values())


def forecast(planned: Plan) -> list[Forecast]:
    store = Store(planned.request.out)
    times, lines = store.times(), []
    stored = {run: store.load(run) for run in planned.runs}
    # Where an earlier run had trained a stage, a run of another seed may take longer.
    shorter = {run.kind for run, one in stored.items() if one and one["data"].get(REUSED)}
    for run in planned.wanted:
        system: System = PAPERS[run.paper].SYSTEMS[run.system]
        source: Source = PAPERS[run.paper].DATASETS[run.dataset]
        try:
            estimate = system.estimate(run.settings, source.sizes)
        except RequestError:  # says that the model's size is not known, as its download does
            estimate = None
        except Unavailable as reason:
            lines.append(Forecast(run, False, None, Estimate(0, 0, 0), str(reason)))
            continue
        cached = stored[run] is not None and not planned.request.fresh
        # One that shares work may have made it, or found it made: its time says nothing of others.
        sharing = run.kind in shorter or bool(estimate and estimate.shared)
        measured = None if sharing else times.get(run.kind)
        lines.append(Forecast(run, cached, measured, estimate))
    return lines


def print_forecast(planned: Plan) -> None:
    """`--dry-run`."""
    lines = forecast(planned)
    rows = [("Run", "State", "Time", "Memory", "Disk")]
    for line in lines:
        bound = line.estimate
        memory = f"{bound.memory / 1e9:.1f} GB" if bound else "not known"
        disk = f"{bound.disk / 1e6:.1f} MB" if bound else "not known"
        rows.append((line.run.title, line.state, forecast_time(line), memory, disk))
    print(grid(rows))
    reasons = Counter(line.why_not for line in lines if line.why_not)
    for reason, count in reasons.items():
        print(f"\n{count} of the runs cannot be made: {reason}.", end="")
    waiting = [line for line in lines if not (line.cached or line.why_not)]
    total = together(waiting)
    rest = " and what is not known" if any(line.seconds is None for line in waiting) else ""
    print(
        f"\n{len(waiting)} of {len(lines)} runs to make, together {duration(total)}{rest}. "
        "'about': measured with another seed; 'at most': every epoch used, on two CPU cores. "
        "Nothing was started."
    )
    print("Downloads needed first: " + ("; ".join(downloads(planned)) or "none") + ".")
    missing = [spot for spot in planned.spots if spot.requested and spot.reason == NOT_BUILT]
    if missing:
        print(f"Cells that are not built yet: {len(missing)}.")


def forecast_time(line: Forecast) -> str:
    if line.cached:
        return "0 s"
    if line.seconds is None:
        return "not known"
    if line.why_not:
        return "none"
    return f"{'at most' if line.measured is None else 'about'} {duration(line.seconds)}"
