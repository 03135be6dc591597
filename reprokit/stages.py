"""What is kept of training: a finished stage (a CF model, an adapter), by what decides it.

Every run that needs the same stage loads it, whichever was first. Its name is a digest of model,
data, seed, precision and settings; its file holds the best states and what chose them, as
safetensors with a JSON header, and a file whose content is not what was written is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reprokit import training
from reprokit.progress import Progress
from reprokit.provenance import provenance
from reprokit.runs import Job, digest, replacing
from reprokit.training import (
    Batch,
    Fit,
    Fitted,
    Loss,
    Objective,
    Predict,
    Record,
    trainable_state,
)

REVISION = 1
"""Of the training loop: raised when a change moves the numbers of every trained stage."""


def stage(
    job: Job,
    accelerator: Accelerator,
    model: nn.Module,
    what: Mapping[str, Any],
    loss: Loss,
    batch: Batch,
    rows: int,
    evaluate: Callable[[Predict], dict[str, float]],
    settings: Fit,
    monitors: tuple[str, ...] = ("auc",),
    lengths: np.ndarray | None = None,
) -> Fitted:
    """`training.fit`, done once for all runs: a stage that is kept is loaded and not trained again.

    `what` names the stage and all that decides it beside the seed, the data, the precision and
    `settings`: the model's settings, and the ids of the stages and backbones that it stands on.
    `Fitted.id` is the stage's own.
    """
    run = job.run
    identity = {
        **what,
        "fit": settings.identity,
        "monitor": monitors[0] if len(monitors) == 1 else list(monitors),
        "seed": run.seed,
        "dataset": run.dataset,
        "fingerprint": run.fingerprint,
        "precision": run.precision,
        "revision": REVISION,
    }
    name = digest(identity)[:20]
    kept = job.folder / "stages" / f"{name}.safetensors"
    checkpoint = kept.with_suffix(".ckpt.safetensors")
    if accelerator.is_main_process:
        for path in (kept, checkpoint):
            if path.is_file() and path.stat().st_mtime < job.fresh:
                path.unlink(missing_ok=True)  # another process may be as quick
    shapes = {name: value.shape for name, value in trainable_state(Objective(model, loss)).items()}
    found = load_stage(kept, shapes, job.progress) if accelerator.is_main_process else None
    if accelerator.num_processes > 1:  # the first process judges the file, all read it
        told = torch.tensor([float(found is not None)], device=accelerator.device)
        if broadcast(told).item() and found is None:
            found = load_stage(kept, shapes, job.progress)
            if found is None:
                raise OSError(f"process {accelerator.process_index} cannot read {kept}")
    if found is not None:
        record, best = found
        wrapped = accelerator.prepare(Objective(model, loss))
        restored = Fitted(accelerator, wrapped, settings.eval_batch, record, best, id=name)
        restored.choose(monitors[0])
        return restored
    fitted = training.fit(  # looked up there: `efficiency` puts a watch in its place
        accelerator,
        model,
        loss,
        batch,
        rows,
        evaluate,
        settings,
        run.seed,
        monitors,
        checkpoint,
        job.checkpoint_seconds,
        job.progress,
        lengths,
    )
    fitted.id = name
    save_stage(kept, identity, fitted)
    if accelerator.is_main_process:
        checkpoint.unlink(missing_ok=True)
    return fitted


def save_stage(path: Path, identity: Mapping[str, Any], fitted: Fitted) -> None:
    """The trained parameters, in their best state by each metric, and what chose them; the first
    process writes. States of one epoch are written once."""
    if fitted.accelerator.is_main_process:
        record = fitted.record
        tensors = {
            f"{record.best_epoch[monitor]}/{name}": value.contiguous()
            for monitor, state in fitted.best.items()
            for name, value in state.items()
        }
        header = {
            "what": identity,
            "record": vars(record),
            "sha256": content(tensors),
            "provenance": provenance(fitted.started, fitted.earlier_seconds),
        }
        with replacing(path) as part:
            save_file(tensors, part, metadata={"reprokit": json.dumps(header)})
    fitted.accelerator.wait_for_everyone()


def load_stage(
    path: Path, shapes: Mapping[str, torch.Size], progress: Progress
) -> tuple[Record, dict[str, dict[str, Tensor]]] | None:
    """What chose a kept stage and its best states; None where there is none, or none to believe."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["reprokit"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if content(tensors) != header["sha256"]:
            raise ValueError("its content is not what was written")
        record = Record(**header["record"])
        best = {
            monitor: {name: tensors[f"{record.best_epoch[monitor]}/{name}"] for name in shapes}
            for monitor in record.monitors
        }
        if any(state[name].shape != shapes[name] for state in best.values() for name in shapes):
            raise ValueError("its parameters are not this model's")
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        progress.note(f"a kept stage is damaged and made again: {path}: {error}")
        return None
    return record, best


def content(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
