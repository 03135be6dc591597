"""What the user sees while work goes on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def duration(seconds: float) -> str:
    """In words that a reader can weigh: seconds, minutes, hours, days."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


class Progress:
    """One bar over the runs, one over the steps of the current run.

    Everything goes to standard error, so that standard output holds the tables alone. Where
    standard error is no terminal, a line is printed at the end of each run and within it about
    every ten seconds.
    """

    def __init__(self, runs: int = 0, quiet: bool = False) -> None:
        self.quiet = quiet
        self.runs = runs
        self.done = 0
        self.total = 0
        self.title = ""
        self.printed = self.started = time.monotonic()
        self._bars: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._runs = self._bars.add_task("runs", total=runs)
            self._steps = self._bars.add_task("", total=None, visible=False)
            self._bars.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def start_run(self, title: str) -> None:
        self.title, self.total = title, 0
        self.started = self.printed = time.monotonic()
        if self._bars:
            self._bars.update(self._steps, description=title, completed=0, total=None, visible=True)
            self._bars.reset(self._steps)

    def end_run(self, text: str) -> None:
        self.done += 1
        seconds = time.monotonic() - self.started
        self.note(f"[{self.done}/{self.runs}] {self.title}: {text} ({seconds:.1f} s)")
        if self._bars:
            self._bars.update(self._runs, completed=self.done)
            self._bars.update(self._steps, visible=False)

    def start_steps(self, total: int) -> None:
        self.total = total
        if self._bars:
            self._bars.update(self._steps, total=total, visible=True)

    def step(self, done: int, text: str) -> None:
        if self._bars:
            self._bars.update(self._steps, completed=done, description=f"{self.title}: {text}")
        elif time.monotonic() - self.printed > 10:
            self.printed = time.monotonic()
            where = f"[{self.done + 1}/{self.runs}] {self.title}"
            self._line(f"{where}: step {done} of at most {self.total}, {text}")

    def note(self, text: str) -> None:
        """One line that stays."""
        if self._bars:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def transfer(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar over bytes: yields advance(done, total); silent where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
