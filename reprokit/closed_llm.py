"""The closed-source rows of table 2: a model behind an endpoint is asked about each test row.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reprokit import click, endpoint
from reprokit.bench import best_items, cf_settings
from reprokit.click import click_result, nothing_chosen
from reprokit.data import CTRData, Rows
from reprokit.endpoint import Reply
from reprokit.runs import Estimate, Job, Result, Unavailable, setting


@dataclass(frozen=True)
class ChatSettings:
    """A closed model behind an OpenAI-compatible endpoint, its answer taken as binary."""

    model: str = setting("gpt-3.5-turbo", "the paper's gpt-3.5-turbo-0613 is retired")
    tuned_model: str = setting("", "the provider's name of the model tuned on the file written")
    tuned: bool = setting(False, "the row's: zero-shot or instruct-tuned", named=True)
    with_cf: bool = setting(
        False, "the row's: whether MF's ten best items stand in the prompt", named=True
    )
    history: int = setting(10, "as in the other rows")
    similar: int = setting(10, "the paper's")
    workers: int = setting(8, "requests at once")
    cf_preset: str = setting("paper", "whose settings of Table 3's CF rows MF is trained with")
    cf_dim: int = setting(128, "the paper's; 0: the CF row's own")
    cf_batch: int = setting(1024, "the paper's; 0: the CF row's own")


def run_chat(job: Job) -> Result:
    """Table 2: a closed model asked for each test row; Yes counts 1, No 0, anything else 1/2."""
    s, data = job.run.settings, click.load(job)
    if s.tuned and not s.tuned_model:
        raise Unavailable(
            f"instruct-tuning happens at the provider: upload {tuning_file(job, data)}, then --set "
            "chat.tuned_model=NAME"
        )
    model = s.tuned_model if s.tuned else s.model
    record = job.folder / "calls" / f"{model.replace('/', '_').replace(':', '_')}.jsonl"
    client = endpoint.Endpoint.from_environment(model, record, workers=s.workers)
    if not record.is_file() and not client.has_key:
        raise Unavailable(
            "no key for the endpoint: set REPROKIT_API_KEY and REPROKIT_API_BASE; nothing was sent"
        )
    replies = ask(job, client, conversations(job, data, data.test))
    read = [endpoint.parse_answer(reply.text) for reply in replies]
    scores = np.array([0.5 if value is None else value for value in read])
    result = click_result(data, lambda rows: scores, nothing_chosen(), splits=("test",))
    names = sorted({reply.model for reply in replies})
    unread = sum(value is None for value in read)
    notes = [f"closed-source model: {', '.join(names)} answered"]
    if unread:
        notes.append(f"{unread:,} of {len(read):,} replies are neither Yes nor No and count 1/2")
    return replace(
        result,
        deviations=(f"{', '.join(names)} in place of gpt-3.5-turbo-0613",),
        notes=tuple(notes),
        data={**result.data, "replies neither Yes nor No": unread},
    )


def conversations(job: Job, data: CTRData, rows: Rows) -> list[list[dict[str, str]]]:
    """What is said about each row: one message, the prompt as plain text."""
    from reprokit import training
    from reprokit.prompts import PLAIN, WITH_CF, render

    s, similar = job.run.settings, None
    if s.with_cf:
        accelerator = training.make_accelerator()
        mf, _ = click.train_collaborative(job, accelerator, "mf", data, cf_settings(job.run, "mf"))
        similar = best_items(mf, data.sealed(), s.similar)
    histories = data.histories(rows, np.arange(len(rows)), s.history)
    texts = render(WITH_CF if s.with_cf else PLAIN, data.titles, rows, histories, similar)
    return [[{"role": "user", "content": text}] for text in texts]


def tuning_file(job: Job, data: CTRData) -> Path:
    """The training rows in the form that providers tune chat models on; no key is needed."""
    name = f"finetune-{job.run.dataset}-{'with' if job.run.settings.with_cf else 'without'}-cf"
    path = job.folder / "calls" / f"{name}.jsonl"
    answers = ["Yes" if label else "No" for label in data.train.labels]
    endpoint.write_finetune(path, conversations(job, data, data.train), answers)
    return path


def ask(job: Job, client: endpoint.Endpoint, asked: list[list[dict[str, str]]]) -> list[Reply]:
    """The replies. The first process asks, the others replay its record."""
    from reprokit import training

    job.progress.start_steps(len(asked))
    accelerator, fault, replies = training.make_accelerator(), None, []
    if accelerator.is_main_process:
        try:
            replies = client.ask(asked, lambda done, of: job.progress.step(done, "replies"))
        except Unavailable as error:
            fault = error
    accelerator.wait_for_everyone()
    if fault:
        raise fault
    if not accelerator.is_main_process:  # or raises as the first one did
        replies = client.ask(asked)
    return replies


def estimate_chat(settings: Any, sizes: Mapping[str, int]) -> Estimate:
    rows = sizes["train"] // 3
    return Estimate(60 + rows / max(1, settings.workers), 1e9, 1000 * rows)
