"""The one training loop, on Accelerate.

What a run may rely on:

- One global batch is the same rows whatever the number of processes: the order follows from (seed,
  epoch) alone, each process takes its share, and every row weighs the same in the gradient. Rows
  repeated to even out the shares weigh nothing.
- Early stopping watches a validation metric; the best state is restored at the end. With several
  metrics, such as one per domain, each has its own best state, and training stops when none of
  them gets better. Epochs before `Fit.min_epochs` have no say in either.
- A checkpoint holds all that decides the next step (model, optimiser, position, best state, random
  generators), as safetensors with a JSON header, so that a killed run ends with the same bytes.
- A loss that is not finite stops the run.

A trained model is kept on disk by `stages`.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from reprokit.progress import Progress
from reprokit.runs import RequestError, replacing

Batch = Callable[[np.ndarray], dict[str, Tensor]]
"""Row numbers (B,) -> the model's inputs, as CPU tensors with B rows each."""
Loss = Callable[..., Tensor]
"""loss(model, **batch) -> one value per row, (B,)."""
Predict = Callable[[Batch, int], np.ndarray]
"""predict(batch, rows) -> scores (rows,)."""

# Names as in the bare model whatever wraps it; frozen parameters are left out.
STATE = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
LOOSE = StateDictOptions(full_state_dict=True, strict=False)


@dataclass(frozen=True)
class Fit:
    """How a model is fitted."""

    lr: float
    batch_size: int
    """Rows per optimiser step, over all processes."""
    max_epochs: int
    patience: int
    """Evaluations without a better validation metric before the run stops."""
    weight_decay: float = 0.0
    """Coupled L2 with "adam"; decoupled, and not on vectors such as biases, with "adamw"."""
    optimizer: str = "adam"
    epoch_rows: int = 0
    """Rows between two validations; 0: all training rows."""
    micro_batch: int = 0
    """Rows held at once by one process, the rest accumulated exactly; 0: its whole share."""
    warmup: int = 0
    """Steps of linear warm-up."""
    schedule: str = "constant"
    """"constant", or "cosine" down to `floor` at the last step of the last epoch."""
    floor: float = 0.0
    """Step size that the cosine ends at."""
    clip: float = 0.0
    """Largest gradient norm; 0: no clipping."""
    eval_batch: int = 4096
    """Rows scored at once by one process."""
    lora_lr: float = 0.0
    """Step size of LoRA weights, where it is another than `lr`; 0: the same."""
    min_epochs: int = 0
    """Number, from 1, of the first epoch that may be the best one; those before it neither choose
    the state nor count for `patience`."""

    def __post_init__(self) -> None:
        least = max(1, self.min_epochs)
        if self.max_epochs < least:
            raise ValueError(
                f"max_epochs must be at least {least}, or no epoch could be chosen; got "
                f"{self.max_epochs} (min_epochs {self.min_epochs})"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the outcome. Without the later fields where they are 0: stages of before
        there were such fields stay what they are."""
        return {k: v for k, v in asdict(self).items() if k not in ("min_epochs", "lora_lr") or v}


@dataclass
class Record:
    """What chose the model: by validation metric its best value and when it was reached."""

    monitors: tuple[str, ...]
    """The first chooses where one state is asked for."""
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: dict[str, int] = field(default_factory=dict)
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Training loss and validation metrics of every epoch."""

    def update(self, epoch: int, metrics: Mapping[str, float]) -> list[str]:
        """Take note of an epoch; returns the metrics that have never been better."""
        better = [m for m in self.monitors if metrics[m] > self.best.get(m, -math.inf)]
        self.best |= {name: metrics[name] for name in better}
        self.best_epoch |= dict.fromkeys(better, epoch)
        return better


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for each named purpose, all from one seed."""
    words = [zlib.crc32(str(name).encode()) for name in names]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def seed_everything(seed: int, *names: str | int) -> None:
    """Seed torch's global generators, which initialisation and dropout draw from."""
    torch.manual_seed(int(generator(seed, *names).integers(2**63)))


def make_accelerator() -> Accelerator:
    """The process's Accelerator: device, precision, processes as the user launched them."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise RequestError(
            f"{kind.value} is not supported yet: every model built so far fits one device. "
            "Launch with: accelerate launch --multi_gpu"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise RequestError(
            "gradient accumulation of the launch configuration would change the experiment: set "
            "it to 1; batches too large for the device are split by the loop itself"
        )
    return accelerator


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    rows: int,
    evaluate: Callable[[Predict], dict[str, float]],
    settings: Fit,
    seed: int,
    monitors: tuple[str, ...] = ("auc",),
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 20.0,
    progress: Progress | None = None,
    lengths: np.ndarray | None = None,
) -> Fitted:
    """Train a model and return it in its best state by the first of `monitors` (higher is better).

    Args:
        loss: loss(model, **batch) -> (B,); averaged here over the rows of the global batch.
        batch: row numbers -> the inputs of `loss`.
        rows: number of training rows.
        evaluate: predict -> validation metrics; must contain `monitors`. `predict(batch, rows)`
            scores rows.
        monitors: validation metrics that each keep their best state; see `Fitted.choose`.
        checkpoint: file to resume from and to write to; the caller removes it once the result is
            kept.
        checkpoint_seconds: time between checkpoints; it changes no result.
        lengths: (rows,), to put rows of like length into one batch; None: batches at random.

    Raises:
        FloatingPointError: the loss or a monitored metric is not finite.
    """
    progress = progress or Progress(quiet=True)
    if accelerator.process_index:  # other dropout than the first process, on other rows
        seed_everything(seed, "process", accelerator.process_index)
    wrapped, optimizer = accelerator.prepare(
        Objective(model, loss), make_optimizer(model, settings)
    )
    order = Order(seed, rows, settings.batch_size, lengths)
    steps_per_epoch = math.ceil((settings.epoch_rows or rows) / settings.batch_size)
    total = settings.max_epochs * steps_per_epoch
    loop = Loop(accelerator, wrapped, optimizer, Record(monitors), checkpoint)
    fitted = Fitted(accelerator, wrapped, settings.eval_batch, loop.record, loop.best)
    loop.resume(progress)
    if loop.epoch == loop.step == 0:  # a broken metric fails now, not after an epoch
        metrics = evaluate(fitted.predict)
        for name in monitors:
            finite(metrics[name], f"validation {name} before training")
    progress.start_steps(total)
    saved = time.monotonic()

    while loop.epoch < settings.max_epochs and not loop.stopped(settings.patience):
        wrapped.train()
        while loop.step < steps_per_epoch:
            done = loop.epoch * steps_per_epoch + loop.step
            set_lr(optimizer, settings, done, total)
            chosen = order[done]
            loop.loss_sum += step(accelerator, wrapped, optimizer, batch, chosen, settings)
            loop.step, loop.rows = loop.step + 1, loop.rows + len(chosen)
            progress.step(done + 1, f"epoch {loop.epoch + 1}, {describe(loop.record)}")
            if checkpoint and loop.due(saved, checkpoint_seconds):
                loop.save()
                saved = time.monotonic()
        loop.end_epoch(lambda: evaluate(fitted.predict), settings.min_epochs)
    fitted.choose(monitors[0])
    fitted.earlier_seconds = loop.earlier_seconds
    return fitted


class Order:
    """The rows of each step, a function of (seed, step) alone.

    Every pass over the rows is a new permutation. With `lengths`, windows of 32 batches are sorted
    by length before they are cut, so that a batch needs little padding, and the batches of a pass
    are shuffled again.
    """

    def __init__(self, seed: int, rows: int, size: int, lengths: np.ndarray | None) -> None:
        self.seed, self.rows, self.size, self.lengths = seed, rows, size, lengths
        self.per_pass = math.ceil(rows / size)
        self.number, self.batches = -1, [np.empty(0, np.int64)]

    def __getitem__(self, step: int) -> np.ndarray:
        number, at = divmod(step, self.per_pass)
        if number != self.number:
            self.number, self.batches = number, self.cut(number)
        return self.batches[at]

    def cut(self, number: int) -> list[np.ndarray]:
        rng = generator(self.seed, "order", number)
        order = rng.permutation(self.rows)
        if self.lengths is None:
            return [order[start : start + self.size] for start in range(0, self.rows, self.size)]
        window = 32 * self.size
        for start in range(0, self.rows, window):
            part = order[start : start + window]
            order[start : start + window] = part[np.argsort(self.lengths[part], kind="stable")]
        batches = [order[start : start + self.size] for start in range(0, self.rows, self.size)]
        return [batches[at] for at in rng.permutation(len(batches))]


@dataclass
class Fitted:
    """A model as `fit` left it, wrapped for its device and processes."""

    accelerator: Accelerator
    wrapped: nn.Module
    eval_batch: int
    record: Record
    best: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """By validation metric: the trained parameters when it was best."""
    earlier_seconds: float = 0.0
    """Time spent by earlier starts of a resumed run."""
    id: str = ""
    """Of the stage, where it is kept."""
    started: float = field(default_factory=time.time)

    def choose(self, monitor: str) -> None:
        """Put the model into its best state by one of the monitored metrics."""
        if monitor in self.best:
            set_model_state_dict(self.wrapped, dict(self.best[monitor]), options=LOOSE)

    def selection(self, monitor: str = "") -> dict[str, Any]:
        """What chose the model, for the run's record."""
        record, monitor = self.record, monitor or self.record.monitors[0]
        return {
            "split": "valid",
            "metric": monitor,
            "value": record.best[monitor],
            "epoch": record.best_epoch[monitor] + 1,
            "epochs": len(record.epochs),
        }

    def predict(self, batch: Batch, rows: int) -> np.ndarray:
        """Scores of all rows in order, (rows,) or (rows, K), float32; each is computed by one
        process."""
        share, _ = shares(np.arange(rows), self.accelerator)
        self.wrapped.eval()
        scores = []
        with torch.inference_mode():
            for start in range(0, len(share), self.eval_batch):
                inputs = to(self.accelerator.device, batch(share[start : start + self.eval_batch]))
                scores.append(self.wrapped(scoring=True, **inputs).float())
        gathered = self.accelerator.gather(torch.cat(scores))  # process by process
        by_process = gathered.unflatten(0, (self.accelerator.num_processes, -1))
        return by_process.transpose(0, 1).flatten(0, 1)[:rows].cpu().numpy()


class Objective(nn.Module):
    """A model and its loss as one module, so that DDP sees every forward pass."""

    def __init__(self, model: Any, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, scoring: bool = False, **batch: Tensor) -> Tensor:
        return self.model.score(**batch) if scoring else self.loss(self.model, **batch)


def step(
    accelerator: Accelerator,
    wrapped: nn.Module,
    optimizer: Any,
    batch: Batch,
    rows: np.ndarray,
    settings: Fit,
) -> Tensor:
    """One optimiser step on the global batch `rows`; returns this process's sum of losses."""
    share, weight = shares(rows, accelerator)
    size = settings.micro_batch or len(share)
    total = torch.zeros((), device=accelerator.device)
    for start in range(0, len(share), size):
        last = start + size >= len(share)
        with nullcontext() if last else accelerator.no_sync(wrapped):
            losses = wrapped(**to(accelerator.device, batch(share[start : start + size])))
            weights = torch.from_numpy(weight[start : start + size]).to(losses)
            value = (losses * weights).sum()
            # Processes average their gradients, so the sum over all rows is P times the mean.
            accelerator.backward(value * accelerator.num_processes / len(rows))
        total += value.detach()
    if settings.clip:
        # This optimiser's gradients alone: an earlier stage's may hold the same weights.
        accelerator.unscale_gradients(optimizer)
        nn.utils.clip_grad_norm_(wrapped.parameters(), settings.clip)
    optimizer.step()
    optimizer.zero_grad()
    return total


def shares(rows: np.ndarray, accelerator: Accelerator) -> tuple[np.ndarray, np.ndarray]:
    """This process's rows and their weights: 1, or 0 for a repeat that evens out the shares."""
    count = accelerator.num_processes
    extra = -len(rows) % count
    padded = np.concatenate([rows, rows[:1].repeat(extra)])
    weight = np.ones(len(padded), np.float32)
    weight[len(rows) :] = 0
    mine = slice(accelerator.process_index, None, count)
    return padded[mine], weight[mine]


def make_optimizer(model: nn.Module, settings: Fit) -> torch.optim.Optimizer:
    """Adam or AdamW over the trainable parameters, fused: one pass over the weights per step."""
    # With AdamW, as in CoLLM and most recipes of its kind, biases and norms do not decay.
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if settings.optimizer not in kinds:
        raise ValueError(f"optimizer must be one of {', '.join(kinds)}, got '{settings.optimizer}'")
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("nothing to train: every parameter of the model is frozen")
    parts: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        rate = settings.lora_lr / settings.lr if settings.lora_lr and "lora_" in name else 1.0
        decays = parameter.dim() > 1 or settings.optimizer == "adam"
        key = (settings.weight_decay if decays else 0.0, rate)
        parts.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": found, "weight_decay": decay, "rate": rate}
        for (decay, rate), found in parts.items()
    ]
    return kinds[settings.optimizer](groups, lr=settings.lr, fused=True)


def set_lr(optimizer: Any, settings: Fit, step: int, total: int) -> None:
    """The step size is a function of the step alone, so a schedule has no state to lose."""
    scale = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "cosine":
        past = max(0, step - settings.warmup) / max(1, total - settings.warmup)
        floor = settings.floor / settings.lr
        scale *= floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * past))
    elif settings.schedule != "constant":
        raise ValueError(f"schedule must be constant or cosine, got '{settings.schedule}'")
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * group.get("rate", 1.0) * scale


class Loop:
    """The state of a run between two steps, and its checkpoint."""

    def __init__(
        self,
        accelerator: Accelerator,
        wrapped: nn.Module,
        optimizer: Any,
        record: Record,
        checkpoint: Path | None,
    ) -> None:
        self.accelerator, self.wrapped = accelerator, wrapped
        self.optimizer = optimizer and optimizer.optimizer  # the bare one, beneath Accelerate's
        self.record, self.checkpoint = record, checkpoint
        self.epoch = self.step = self.rows = 0
        self.loss_sum = torch.zeros((), device=accelerator.device)
        self.best: dict[str, dict[str, Tensor]] = {}
        self.started = time.monotonic()
        self.earlier_seconds = 0.0

    def stopped(self, patience: int) -> bool:
        last = max(self.record.best_epoch.values(), default=self.epoch)
        return self.epoch - 1 - last >= patience

    def due(self, saved: float, seconds: float) -> bool:
        """Whether to write a checkpoint now; with several processes the first decides for all."""
        late = time.monotonic() - saved >= seconds
        if self.accelerator.num_processes == 1:
            return late
        votes = self.accelerator.gather(torch.tensor([float(late)], device=self.accelerator.device))
        return bool(votes[0])

    def end_epoch(self, evaluate: Callable[[], dict[str, float]], min_epochs: int) -> None:
        mean_loss = float(self.accelerator.gather(self.loss_sum[None]).sum()) / self.rows
        finite(mean_loss, f"training loss of epoch {self.epoch + 1}")
        metrics = evaluate()
        for name in self.record.monitors:
            finite(metrics[name], f"validation {name}")
        self.record.epochs.append({"loss": mean_loss, **metrics})
        judged = self.epoch + 1 >= min_epochs
        if judged and (better := self.record.update(self.epoch, metrics)):
            state = {k: tensor.cpu().clone() for k, tensor in trainable_state(self.wrapped).items()}
            self.best |= dict.fromkeys(better, state)
        self.epoch, self.step, self.rows = self.epoch + 1, 0, 0
        self.loss_sum.zero_()

    def save(self) -> None:
        """Write the checkpoint; the old one stays until the new one is whole."""
        finite(float(self.loss_sum), f"training loss of epoch {self.epoch + 1}, step {self.step}")
        generators = self.accelerator.gather(rng_state(self.accelerator.device)[None])
        sums = self.accelerator.gather(self.loss_sum[None])
        optimizer: Any = get_optimizer_state_dict(self.wrapped, self.optimizer, options=STATE)
        tensors = {f"model/{name}": value for name, value in trainable_state(self.wrapped).items()}
        for monitor, state in self.best.items():  # states of one epoch are written once
            epoch = self.record.best_epoch[monitor]
            tensors |= {f"best/{epoch}/{name}": value for name, value in state.items()}
        tensors |= {"generators": generators, "loss_sum": sums}
        for parameter, values in optimizer["state"].items():
            tensors |= {f"optimizer/{parameter}/{name}": value for name, value in values.items()}
        header = {
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "record": vars(self.record),
            "groups": optimizer["param_groups"],
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            **self.surroundings(),
            "seconds": self.earlier_seconds + time.monotonic() - self.started,
        }
        if self.accelerator.is_main_process and self.checkpoint:
            kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            with replacing(self.checkpoint) as part:
                save_file(kept, part, metadata={"reprokit": json.dumps(header)})
        self.accelerator.wait_for_everyone()

    def resume(self, progress: Progress) -> None:
        """Continue from the checkpoint; one that does not fit is said and left alone."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                header = json.loads(file.metadata()["reprokit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.check(header, tensors)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            progress.note(f"the checkpoint cannot be used ({error}): starting the run again")
            return

        def part(prefix: str) -> dict[str, Any]:
            return {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }

        states: dict[str, Any] = {}
        for key, value in part("optimizer/").items():
            parameter, _, name = key.rpartition("/")
            states.setdefault(parameter, {})[name] = value
        set_model_state_dict(self.wrapped, part("model/"), options=LOOSE)
        set_optimizer_state_dict(
            self.wrapped,
            self.optimizer,
            {"state": states, "param_groups": header["groups"]},
            options=LOOSE,
        )
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(header["scaler"])
        vars(self.record).update(header["record"])
        self.record.monitors = tuple(self.record.monitors)
        by_epoch = {epoch: part(f"best/{epoch}/") for epoch in self.record.best_epoch.values()}
        self.best |= {name: by_epoch[at] for name, at in self.record.best_epoch.items()}
        self.epoch, self.step, self.rows = header["epoch"], header["step"], header["rows"]
        self.earlier_seconds = header["seconds"]
        mine = self.accelerator.process_index
        self.loss_sum += tensors["loss_sum"][mine].to(self.loss_sum)
        set_rng_state(tensors["generators"][mine], self.accelerator.device)
        progress.note(f"resumed at epoch {self.epoch + 1}, step {self.step}")

    def surroundings(self) -> dict[str, Any]:
        """What must be as it was for a run to go on exactly."""
        return {
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "precision": self.accelerator.mixed_precision,
        }

    def check(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Raises ValueError where a checkpoint is not of this model or of these processes."""
        for name, value in self.surroundings().items():
            if header[name] != value:
                raise ValueError(f"{name} was {header[name]}, now {value}")
        ours = {f"model/{k}": value.shape for k, value in trainable_state(self.wrapped).items()}
        if ours != {k: value.shape for k, value in tensors.items() if k.startswith("model/")}:
            raise ValueError("its parameters are not this model's")


def trainable_state(wrapped: nn.Module) -> dict[str, Tensor]:
    """Parameters that train, and buffers, by their name in the bare model."""
    state = get_model_state_dict(wrapped, options=STATE)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def rng_state(device: torch.device) -> Tensor:
    """torch's generators of this process as one row of bytes: the CPU's, then the device's."""
    state = torch.get_rng_state()
    if device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(device)])
    return state.to(device)


def set_rng_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    # Clones, because torch reads a view of a larger tensor from that tensor's start.
    torch.set_rng_state(state[:size].cpu().clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:].cpu().clone(), device)


def finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise FloatingPointError(f"{what} is {value}; a smaller step size (lr) may help")
    return value


def describe(record: Record) -> str:
    if not record.best:
        return "too early to choose" if record.epochs else "no validation yet"
    return ", ".join(
        f"best {name} {value:.4f} in epoch {record.best_epoch[name] + 1}"
        for name, value in record.best.items()
    )


def to(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
