"""What a language model answers to prompts, asked once and kept.

The answers to the same model with the same settings stand in `asked/<key>.jsonl`, a text file that
only grows, one JSON object per line:

- `key`: SHA-256 of the prompt; `prompt`: all of it.
- `text`: the answer; `tokens` that were made (null where an endpoint did not say); `reasoned`: a
  reasoning in <think> marks was removed; `cut`: the answer reached the most tokens allowed.
- `digest`: SHA-256 of all of the above. A last line that a kill cut off is asked again; another
  line that is not as it was written is an error.

A language model is what `backbones` knows by a name, or `endpoint:MODEL` behind an
OpenAI-compatible endpoint, whose calls are recorded and replayed as `endpoint` says.

Importing this module loads no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reprokit.backbones import Backbone, identify
from reprokit.endpoint import Endpoint, Reply, is_text, read_record
from reprokit.features import first_process, wait_for
from reprokit.homemade import RECIPES, TINY, prepare, quiet
from reprokit.progress import Progress
from reprokit.runs import RequestError, alone, digest

try:
    import fcntl
except ImportError:  # Windows: there, two commands must not ask the same model at the same time
    fcntl = None  # type: ignore[assignment]

REVISION = 1
"""Of how a model is asked: raised when a change moves an answer."""
ENDPOINT = "endpoint:"
THOUGHT = "</think>"
CHUNK = 1024
"""Prompts that are measured together, and replies that are written together."""


@dataclass(frozen=True)
class Answer:
    """What a language model answered to a prompt."""

    text: str
    tokens: int | None
    reasoned: bool
    cut: bool


# --- asking -------------------------------------------------------------------------------------
def ask(
    prompts: Sequence[str],
    llm: str,
    folder: Path,
    progress: Progress,
    fingerprint: str = "",
    max_new_tokens: int = 128,
    batch: int = 8,
    dtype: str = "auto",
    workers: int = 8,
    corpus: Sequence[str] = (),
    what: str = "answers",
) -> tuple[list[Answer], dict[str, Any]]:
    """What a language model answers to each prompt, in order; and facts.

    Equal prompts are asked once, recorded ones not again.

    Args:
        llm: a name that `backbones` knows, or `endpoint:MODEL`.
        folder: of the results; answers are kept in its `asked`, calls in its `calls`.
        fingerprint: of a local model, as `backbones.identify` gives it; empty: looked up here.
        batch, dtype: of a local model.
        workers: requests under way at once, of an endpoint.
        corpus: texts from which a model that is made here (`tiny`, `scratch`) is made. The first
            one weighs most: give the fixed words of the prompts there.
        what: the answers are, for the progress line: "summaries of users".

    The facts count distinct `prompts`, those `asked` now and those `recorded` before, `empty`
    answers, those that `reasoned` and those `cut` at `max_new_tokens`, and `tokens`; `model` names
    the model, and `note` says what a reader must know of the answers.

    Raises:
        RequestError: no such model, a prompt that is empty or too long for it, or a damaged line
            of the record, in one line.
        Unavailable: answers are missing, and there is no key for the endpoint.
    """
    for at, prompt in enumerate(prompts, 1):
        if not is_text(prompt) or not prompt.strip():
            raise RequestError(f"{what} by {llm}: prompt {at} is empty, or no text in Unicode")
    keys = [digest(prompt) for prompt in prompts]
    asked = dict(zip(keys, prompts, strict=True))
    if not asked:
        return [], summary([], 0, llm, "")
    model: Local | Remote
    if llm.startswith(ENDPOINT):
        model = Remote(llm.removeprefix(ENDPOINT), folder, max_new_tokens, workers)
    else:
        model = Local(llm, corpus, folder, fingerprint, max_new_tokens, batch, dtype)
    settings = {"max_new_tokens": max_new_tokens, "greedy": True}
    name = digest([REVISION, model.fingerprint, settings])[:20]
    record = Record(folder / "asked" / f"{name}.jsonl", asked)
    record.read()
    missing = len(asked) - len(record.known)
    if missing and (first_process() or model.speaks_alone()):
        with alone(record.path):  # another command may be asking the same
            record.read()
            missing = len(asked) - len(record.known)
            if missing:
                model.ask(record, progress, f"{what} by {llm}")
    elif missing:
        wait_for(record.everything)
    answers = record.known
    note = "; ".join(filter(None, [model.note, remarks(answers.values(), max_new_tokens)]))
    return [answers[key] for key in keys], summary(answers.values(), missing, llm, note)


def summary(answers: Collection[Answer], asked: int, llm: str, note: str) -> dict[str, Any]:
    return {
        "model": llm,
        "prompts": len(answers),
        "asked": asked,
        "recorded": len(answers) - asked,
        "empty": sum(not answer.text for answer in answers),
        "reasoned": sum(answer.reasoned for answer in answers),
        "cut": sum(answer.cut for answer in answers),
        "tokens": sum(answer.tokens or 0 for answer in answers),
        "note": note,
    }


def remarks(answers: Collection[Answer], max_new_tokens: int) -> str:
    """What to say of answers that are not whole."""
    lost = sum(answer.reasoned and not answer.text for answer in answers)
    empty = sum(not answer.text for answer in answers) - lost
    cut = sum(answer.cut for answer in answers)
    few = f"{max_new_tokens} tokens are too few for this model"
    told = (
        (lost, f"hold a reasoning and nothing else: {few}"),
        (empty, "are empty"),
        (cut, f"were cut at {max_new_tokens} tokens"),
    )
    return "; ".join(f"{n:,} of {len(answers):,} answers {said}" for n, said in told if n)


def without_reasoning(text: str, opened: bool = False) -> tuple[str, bool]:
    """(answer, whether it had a reasoning). `opened`: the prompt ended within the reasoning.

    What stands before the last closing mark is reasoning; without that mark, all that follows the
    opening one is.
    """
    before, mark, after = text.rpartition(THOUGHT)
    if mark:
        return after.strip(), bool(re.sub(r"<think>|</think>", "", before).strip())
    head, opening, _ = text.partition("<think>")
    if opening:
        return head.strip(), True
    return ("", True) if opened else (text.strip(), False)


# --- a model on this machine --------------------------------------------------------------------
class Local:
    """A causal language model on this machine, decoded greedily."""

    def __init__(
        self,
        llm: str,
        corpus: Sequence[str],
        folder: Path,
        fingerprint: str,
        max_new_tokens: int,
        batch: int,
        dtype: str,
    ) -> None:
        if max_new_tokens < 1 or batch < 1:
            raise RequestError(
                f"language model '{llm}': max_new_tokens and batch must be 1 at least, got "
                f"{max_new_tokens} and {batch}"
            )
        self.llm, self.max_new_tokens, self.batch, self.dtype = llm, max_new_tokens, batch, dtype
        self.fingerprint = fingerprint or identify(llm, folder / "fingerprints.json")
        self.folder, self.frame, self.note = folder, corpus[:1], ""
        self.corpus: list[str] = []
        if llm in RECIPES:  # made here, from these texts
            self.corpus = sorted(set(corpus))
            if len(self.corpus) < 2:
                raise RequestError(
                    f"language model '{llm}' is made from texts: it needs 2 differing ones at "
                    f"least, got {len(self.corpus)}"
                )
            made = "has random weights" if llm == TINY else "was trained on a few texts alone"
            self.note = f"{llm} {made}: what it says carries nothing"
            self.fingerprint = digest([self.fingerprint, list(self.frame), self.corpus])

    def speaks_alone(self) -> bool:
        """Whether a process that does not write may answer too."""
        return False

    def ask(self, record: Record, progress: Progress, what: str) -> None:
        """Answer what is missing, batch by batch.

        The batches follow from all prompts, wherever an earlier start stopped: in half precision
        the padding may decide between two words.
        """
        from reprokit.backbones import load
        from reprokit.encoders import device_name

        source, _ = prepare(self.llm, self.corpus, self.frame, self.folder, progress.note)
        backbone = load(self.llm, source, self.dtype, device=device_name())
        ends = self.settle(backbone)
        asked = record.asked
        self.check_room(backbone, [asked[key] for key in asked if key not in record.known])
        order = sorted(asked, key=lambda key: (len(asked[key]), key))
        progress.start_steps(len(order))
        for start in range(0, len(order), self.batch):
            missing = [key for key in order[start : start + self.batch] if key not in record.known]
            if missing:
                record.add(self.answers(backbone, [asked[key] for key in missing], ends), missing)
                progress.step(len(record.known), what)

    def settle(self, backbone: Backbone) -> list[int]:
        """Greedy decoding whatever the checkpoint suggests; returns the tokens that end it."""
        from transformers import GenerationConfig

        model, tokenizer = backbone.model, backbone.tokenizer
        ends = end_tokens(model, tokenizer)
        model.generation_config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            eos_token_id=ends,
        )
        return ends

    def check_room(self, backbone: Backbone, prompts: Sequence[str]) -> None:
        """Refuse prompts that leave no room for an answer, before the first one is answered."""
        room = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
        if not room:
            return
        longest = 0
        for start in range(0, len(prompts), CHUNK):  # the tokens of all would not fit in memory
            texts = as_read(backbone.tokenizer, prompts[start : start + CHUNK])
            longest = max(longest, *map(len, tokens_of(backbone.tokenizer, texts)))
        if longest + self.max_new_tokens > room:
            raise RequestError(
                f"language model '{self.llm}' reads {room} tokens: the longest prompt, of "
                f"{longest}, and {self.max_new_tokens} new ones are too many. Lower "
                "max_new_tokens, shorten the prompts, or choose another model"
            )

    def answers(
        self, backbone: Backbone, prompts: Sequence[str], ends: Sequence[int]
    ) -> list[Answer]:
        texts = as_read(backbone.tokenizer, prompts)
        rows = self.generate(backbone, texts)
        return [
            self.answer(backbone.tokenizer, row, ends, text.rstrip().endswith("<think>"))
            for text, row in zip(texts, rows, strict=True)
        ]

    def generate(self, backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
        """New tokens behind each prompt; prompts are padded on the left."""
        import torch

        model = backbone.model
        rows = tokens_of(backbone.tokenizer, texts)
        width, pad = max(map(len, rows)), model.generation_config.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])  # (B, T)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode(), quiet():
            out = model.generate(ids.to(model.device), attention_mask=mask.to(model.device))
        made: list[list[int]] = out[:, width:].tolist()
        return made

    def answer(
        self, tokenizer: Any, row: Sequence[int], ends: Sequence[int], opened: bool
    ) -> Answer:
        """What was made for one prompt, up to its end."""
        stop = next((at for at, token in enumerate(row) if token in ends), None)
        made = list(row if stop is None else row[:stop])
        text = tokenizer.decode(made, skip_special_tokens=True)
        said, reasoned = without_reasoning(text, opened)
        tokens = len(made) + (stop is not None)
        return Answer(said, tokens, reasoned, stop is None and tokens >= self.max_new_tokens)


def as_read(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts as the model reads them: a user's messages where there is a chat template."""
    if not tokenizer.chat_template:
        return list(prompts)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of what `as_read` gives: the marks of a chat template stand in the text."""
    with quiet():  # it warns of long texts, which are refused in one line
        rows: list[list[int]] = tokenizer(
            list(texts), add_special_tokens=not tokenizer.chat_template
        )["input_ids"]
    return rows


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    both = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    ends = [token for token in dict.fromkeys(both) if token is not None]
    if not ends:
        raise RequestError("the language model has no token that ends an answer: choose another")
    return ends


# --- a model behind an endpoint -----------------------------------------------------------------
class Remote:
    """A chat model behind an OpenAI-compatible endpoint."""

    note = ""

    def __init__(self, model: str, folder: Path, max_new_tokens: int, workers: int) -> None:
        calls = folder / "calls" / f"{re.sub(r'[/:]', '_', model)}.jsonl"
        self.client = Endpoint.from_environment(
            model, calls, max_tokens=max_new_tokens, workers=workers
        )
        self.fingerprint = f"{ENDPOINT}{model}"

    def speaks_alone(self) -> bool:
        """Without a key nothing is sent: every process replays the calls, or says what it lacks."""
        return not self.client.has_key

    def ask(self, record: Record, progress: Progress, what: str) -> None:
        """Ask for what is missing; each reply is in the record of calls when it arrives."""
        missing = [key for key in record.asked if key not in record.known]
        talks = [[{"role": "user", "content": record.asked[key]}] for key in missing]
        progress.start_steps(len(missing))
        replies = self.client.ask(talks, lambda done, of: progress.step(done, what))
        calls, _ = read_record(self.client.record)
        for start in range(0, len(missing), CHUNK):
            some = slice(start, start + CHUNK)
            told = [calls.get(self.key(talk), {}) for talk in talks[some]]
            answers = list(map(self.answer, replies[some], told))
            record.add(answers, missing[some], write=first_process())

    def answer(self, reply: Reply, call: Mapping[str, Any]) -> Answer:
        """An answer from a reply and what the record of calls says of it."""
        used = call.get("usage", {}).get("completion_tokens")
        # A server may send half of a surrogate pair, which no file and no tokenizer takes.
        said, reasoned = without_reasoning(reply.text.encode("utf-8", "replace").decode())
        tokens = used if isinstance(used, int) else None
        return Answer(said, tokens, reasoned, call.get("finish") == "length")

    def key(self, talk: Sequence[Mapping[str, str]]) -> str:
        """Of a call in the record."""
        one = self.client
        request = {"model": one.model, "messages": list(talk), "max_tokens": one.max_tokens}
        return digest({**request, "temperature": one.temperature, "seed": one.seed})


# --- the record ---------------------------------------------------------------------------------
class Record:
    """The answers of one model with its settings in a file, as far as they are asked for.

    It is read on from where the last reading ended. A process that writes locks the file and first
    takes in what others have written meanwhile, such as the shards of one command.
    """

    def __init__(self, path: Path, asked: Mapping[str, str]) -> None:
        """`asked`: prompts by their key."""
        self.path, self.asked = path, asked
        self.known: dict[str, Answer] = {}
        self.end = self.lines = 0
        """Bytes and lines that were read, or written, whole."""

    def read(self) -> None:
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            self.read_on(file)

    def everything(self) -> dict[str, Answer] | None:
        """The answers to all prompts, once they are in the file."""
        self.read()
        return self.known if len(self.known) == len(self.asked) else None

    def read_on(self, file: IO[bytes]) -> None:
        """Take in the lines behind those that were read; the first answer to a prompt stands.

        A last line that is not whole is as if it were not there: it was cut off by a kill, or is
        being written now.
        """
        size = os.fstat(file.fileno()).st_size
        if size < self.end:
            raise RequestError(f"{self.path} was shortened while it was in use: start again")
        file.seek(self.end)
        for line in file:
            found = believe(line)
            if found is None and self.end + len(line) >= size:
                return
            if found is None:
                raise RequestError(
                    f"{self.path}, line {self.lines + 1}: not as it was written. Remove the line, "
                    "and its prompt is asked again"
                )
            key, answer = found
            if key in self.asked:
                self.known.setdefault(key, answer)
            self.end, self.lines = self.end + len(line), self.lines + 1

    def add(self, answers: Sequence[Answer], keys: Sequence[str], write: bool = True) -> None:
        """Keep answers, in the file behind its last whole line; the first of them makes the file.

        `write`: False where another process writes.
        """
        fresh = dict(zip(keys, answers, strict=True))
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                lock(file)
                self.read_on(file)
                self.write(file, {key: fresh[key] for key in fresh if key not in self.known})
        for key, answer in fresh.items():
            self.known.setdefault(key, answer)

    def write(self, file: IO[bytes], fresh: Mapping[str, Answer]) -> None:
        lines = [
            {"key": key, "prompt": self.asked[key], **vars(answer)} for key, answer in fresh.items()
        ]
        told = [{**line, "digest": digest(line)} for line in lines]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told).encode()
        file.truncate(self.end)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        self.end, self.lines = self.end + len(content), self.lines + len(lines)


def believe(line: bytes) -> tuple[str, Answer] | None:
    """(key of a prompt, its answer), if a line is what was written."""
    try:
        told = json.loads(line)
        if not line.endswith(b"\n") or told.pop("digest") != digest(told):
            return None
        answer = Answer(told["text"], told["tokens"], told["reasoned"], told["cut"])
        return told["key"], answer
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def lock(file: IO[bytes]) -> None:
    """Wait until no other process writes to a file, and keep them off until it is closed.

    Some network disks have no locks: there, the digests find what two processes wrote at once.
    """
    if fcntl:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
