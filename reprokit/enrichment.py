"""What a language model adds to the titles of items (LLM-EMF, eq. 1), asked once and kept.

P_n = LLM(commands): each item's title and domain fill the template of the paper's section 3.3, and
a language model answers it. The answers stand in `enrichment/<key>.jsonl`, a text file that only
grows, one JSON object per line: `item`, `domain`, `title`, `text`, `tokens` that were made (null
where an endpoint did not say), `reasoned` (a reasoning in <think> marks was removed) and `cut` (the
answer reached the most tokens allowed). An item with another title or domain is asked anew.

A language model is what `backbones` knows by a name, or `endpoint:MODEL` behind an
OpenAI-compatible endpoint, whose calls are recorded and replayed as `endpoint` says.

Importing this module loads no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprokit.backbones import Backbone, identify
from reprokit.endpoint import Endpoint, read_record
from reprokit.features import first_process, wait_for
from reprokit.homemade import RECIPES, TINY, prepare, quiet
from reprokit.progress import Progress
from reprokit.runs import RequestError, digest

TEMPLATE = (
    "Generate additional contextual information for an item which is type of [domain] with "
    "[title]. Provide detailed insights and keywords about the item's features. The output should "
    "include specific attributes, and potential users that could enhance the understanding of the "
    "item in a cross-domain recommendation context."
)
"""Section 3.3, as printed."""
REVISION = 1
"""Of how a model is asked: raised when a change moves an answer."""
ENDPOINT = "endpoint:"
THOUGHT = "</think>"

Item = tuple[str, str, str]
"""(item id, domain, title)."""


@dataclass(frozen=True)
class Answer:
    """What a language model said of an item."""

    text: str
    tokens: int | None
    reasoned: bool
    cut: bool


# --- asking -------------------------------------------------------------------------------------
def enrich(
    items: Sequence[Item],
    llm: str,
    folder: Path,
    progress: Progress,
    fingerprint: str = "",
    max_new_tokens: int = 128,
    batch: int = 8,
    dtype: str = "auto",
    workers: int = 8,
) -> tuple[list[str], dict[str, Any]]:
    """What a language model says of each item, empty where it has no title; and facts.

    Args:
        llm: a name that `backbones` knows, or `endpoint:MODEL`.
        folder: of the results; answers are kept in its `enrichment`, calls in its `calls`.
        fingerprint: of a local model, as `backbones.identify` gives it; empty: looked up here.
        batch, dtype: of a local model.
        workers: requests under way at once, of an endpoint.

    The facts count `items`, `untitled` (not asked), `asked` now, `recorded` before, `empty`
    answers, those that `reasoned` and those `cut` at `max_new_tokens`, and `tokens`; `model` names
    the model, and `note` says what a reader must know of it.

    Raises:
        RequestError: no such model, or a line of the record is damaged, in one line.
        Unavailable: answers are missing, and there is no key for the endpoint.
    """
    items = [(str(item), tidy(domain), tidy(title)) for item, domain, title in items]
    asked = list(dict.fromkeys(item for item in items if item[2]))
    if not asked:
        return [""] * len(items), summary(items, {}, 0, llm, "")
    settings = {"max_new_tokens": max_new_tokens, "greedy": True}
    if llm.startswith(ENDPOINT):
        model: Local | Remote = Remote(llm.removeprefix(ENDPOINT), folder, max_new_tokens, workers)
    else:
        model = Local(llm, asked, folder, progress, fingerprint, max_new_tokens, batch, dtype)
    name = digest([REVISION, model.fingerprint, TEMPLATE, settings])[:20]
    record = folder / "enrichment" / f"{name}.jsonl"
    known, end = read_answers(record)
    missing = [item for item in asked if item not in known]
    if missing and (first_process() or model.speaks_alone()):
        model.ask(asked, known, Writer(record, end), progress)
    elif missing:
        known = wait_for(lambda: everything(record, asked))
    notes = [model.note, unfinished({item: known[item] for item in asked}, max_new_tokens)]
    facts = summary(items, known, len(missing), llm, "; ".join(filter(None, notes)))
    return [known[item].text if item[2] else "" for item in items], facts


def tidy(text: str) -> str:
    """Text on one line, without space around it."""
    return " ".join(str(text).split())


def command(item: Item) -> str:
    """The template, filled."""
    parts = {"[domain]": item[1], "[title]": item[2]}
    return re.sub(r"\[(?:domain|title)\]", lambda found: parts[found[0]], TEMPLATE)


def everything(record: Path, asked: Sequence[Item]) -> dict[Item, Answer] | None:
    """The answers to all items, once they are in the record."""
    known, _ = read_answers(record)
    return known if all(item in known for item in asked) else None


def summary(
    items: Sequence[Item], known: Mapping[Item, Answer], asked: int, llm: str, note: str
) -> dict[str, Any]:
    distinct = list(dict.fromkeys(item for item in items if item[2]))
    answers = [known[item] for item in distinct]
    return {
        "model": llm,
        "items": len(items),
        "untitled": sum(not title for _, _, title in items),
        "asked": asked,
        "recorded": len(answers) - asked,
        "empty": sum(not answer.text for answer in answers),
        "reasoned": sum(answer.reasoned for answer in answers),
        "cut": sum(answer.cut for answer in answers),
        "tokens": sum(answer.tokens or 0 for answer in answers),
        "note": note,
    }


def unfinished(answers: Mapping[Item, Answer], max_new_tokens: int) -> str:
    """What to say where a model was still reasoning when it had to stop."""
    lost = sum(answer.reasoned and not answer.text for answer in answers.values())
    if not lost:
        return ""
    return (
        f"{lost:,} of {len(answers):,} answers hold a reasoning and nothing else: {max_new_tokens} "
        "tokens are too few for this model"
    )


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


class Local:
    """A causal language model on this machine, decoded greedily."""

    def __init__(
        self,
        llm: str,
        asked: Sequence[Item],
        folder: Path,
        progress: Progress,
        fingerprint: str,
        max_new_tokens: int,
        batch: int,
        dtype: str,
    ) -> None:
        if max_new_tokens < 1 or batch < 1:
            raise ValueError(f"max_new_tokens and batch of {llm} must be 1 at least")
        self.llm, self.max_new_tokens, self.batch, self.dtype = llm, max_new_tokens, batch, dtype
        self.fingerprint = fingerprint or identify(llm, folder / "fingerprints.json")
        self.source, self.note = llm, ""
        if llm in RECIPES:  # made here, from these titles
            titles = sorted({title for _, _, title in asked} | {domain for _, domain, _ in asked})
            if first_process():
                self.source, _ = prepare(llm, titles, [TEMPLATE], folder, progress.note)
            what = "has random weights" if llm == TINY else "was trained on these titles alone"
            self.note = f"{llm} {what}: what it says of an item carries nothing"
            self.fingerprint = digest([self.fingerprint, titles])

    def speaks_alone(self) -> bool:
        """Whether a process that does not write may answer too."""
        return False

    def ask(
        self,
        asked: Sequence[Item],
        known: dict[Item, Answer],
        writer: Writer,
        progress: Progress,
    ) -> None:
        """Answer what is missing, batch by batch.

        The batches follow from all items, wherever an earlier start stopped: in half precision the
        padding may decide between two words.
        """
        from reprokit.backbones import load
        from reprokit.encoders import device_name

        backbone = load(self.llm, self.source, self.dtype, device=device_name())
        ends = self.settle(backbone)
        texts, opened = prompts(backbone, asked)
        order = sorted(range(len(asked)), key=lambda at: len(texts[at]))
        progress.start_steps(len(asked))
        done = sum(item in known for item in asked)
        for start in range(0, len(order), self.batch):
            missing = [at for at in order[start : start + self.batch] if asked[at] not in known]
            if not missing:
                continue
            rows = self.generate(backbone, [texts[at] for at in missing])
            answers = [self.answer(backbone.tokenizer, row, ends, opened) for row in rows]
            fresh = {asked[at]: answer for at, answer in zip(missing, answers, strict=True)}
            writer.append(fresh)
            known |= fresh
            done += len(fresh)
            progress.step(done, f"items described by {self.llm}")

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

    def generate(self, backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
        """New tokens behind each prompt; prompts are padded on the left."""
        import torch

        model, tokenizer = backbone.model, backbone.tokenizer
        templated = bool(tokenizer.chat_template)  # its marks stand in the text
        rows = tokenizer(list(texts), add_special_tokens=not templated)["input_ids"]
        width = max(map(len, rows))
        self.check_room(model, width)
        pad = model.generation_config.pad_token_id
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

    def check_room(self, model: Any, width: int) -> None:
        room = getattr(model.config, "max_position_embeddings", None)
        if room and width + self.max_new_tokens > room:
            raise RequestError(
                f"language model '{self.llm}' reads {room} tokens: a prompt of {width} and "
                f"{self.max_new_tokens} new ones are too many. Lower max_new_tokens, or shorten "
                "the longest title"
            )


def prompts(backbone: Backbone, asked: Sequence[Item]) -> tuple[list[str], bool]:
    """The prompts as the model reads them, and whether they end within a reasoning.

    Where the tokenizer has a chat template, a prompt is a user's message; else it stands alone.
    """
    tokenizer, texts = backbone.tokenizer, [command(item) for item in asked]
    if tokenizer.chat_template:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in texts
        ]
    return texts, texts[0].rstrip().endswith("<think>")


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    both = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    ends = [token for token in dict.fromkeys(both) if token is not None]
    if not ends:
        raise RequestError("the language model has no token that ends an answer: choose another")
    return ends


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

    def ask(
        self,
        asked: Sequence[Item],
        known: dict[Item, Answer],
        writer: Writer,
        progress: Progress,
    ) -> None:
        """Ask for what is missing; each reply is in the record of calls when it arrives."""
        missing = [item for item in asked if item not in known]
        talks = [[{"role": "user", "content": command(item)}] for item in missing]
        progress.start_steps(len(missing))
        replies = self.client.ask(talks, lambda done, of: progress.step(done, "replies"))
        calls, _ = read_record(self.client.record)
        fresh = {}
        for item, talk, reply in zip(missing, talks, replies, strict=True):
            call = calls.get(self.key(talk), {})
            used = call.get("usage", {}).get("completion_tokens")
            said, reasoned = without_reasoning(reply.text)
            tokens = used if isinstance(used, int) else None
            fresh[item] = Answer(said, tokens, reasoned, call.get("finish") == "length")
        if first_process():
            writer.append(fresh)
        known |= fresh

    def key(self, talk: Sequence[Mapping[str, str]]) -> str:
        """Of a call in the record."""
        one = self.client
        request = {"model": one.model, "messages": list(talk), "max_tokens": one.max_tokens}
        return digest({**request, "temperature": one.temperature, "seed": one.seed})


# --- the record ---------------------------------------------------------------------------------
def read_answers(path: Path) -> tuple[dict[Item, Answer], int]:
    """Answers by item, and where the last whole line ends.

    A line that a kill cut off, which is the last one, is as if it were not there; the first answer
    to an item stands. Raises RequestError where another line is damaged.
    """
    answers: dict[Item, Answer] = {}
    end = 0
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}, 0
    for number, line in enumerate(lines, 1):
        found = believe(line)
        if found is None and number == len(lines):
            break
        if found is None:
            raise RequestError(
                f"{path}, line {number}: not as it was written. Remove the line, and its item is "
                "asked again"
            )
        answers.setdefault(*found)
        end += len(line)
    return answers, end


def believe(line: bytes) -> tuple[Item, Answer] | None:
    """What a line says, if it is whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        told = json.loads(line)
        item = (told["item"], told["domain"], told["title"])
        answer = Answer(told["text"], told["tokens"], told["reasoned"], told["cut"])
    except (ValueError, LookupError, TypeError):
        return None
    words = all(isinstance(text, str) for text in (*item, answer.text))
    marks = isinstance(answer.reasoned, bool) and isinstance(answer.cut, bool)
    return (item, answer) if words and marks and isinstance(answer.tokens, int | None) else None


class Writer:
    """Appends to a record, behind its last whole line; the file is made by the first answer."""

    def __init__(self, path: Path, end: int) -> None:
        self.path, self.end = path, end

    def append(self, answers: Mapping[Item, Answer]) -> None:
        lines = [
            {"item": item, "domain": domain, "title": title, **vars(answer)}
            for (item, domain, title), answer in answers.items()
        ]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(self.end)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.end += len(content)


# --- the text of an item ------------------------------------------------------------------------
KEYWORDS = r"key ?words?|tags?|key ?phrases?"
ATTRIBUTES = r"attributes?|features?|genres?|themes?|category|categories|details?|specifications?"
OTHERS = r"users?|audiences?|readers?|viewers?|insights?|context|overview|summary|description"
FIRST, SECOND, LISTED, REST = range(1, 5)
NUMBER = r"\(?\d{1,2}[.)]\s+"
MARK = re.compile(rf"(?:[-*+\u2022\u2013\u25cf]\s+|{NUMBER})")
"""Of a line of a list."""
LABEL_WORDS = 6
"""What stands before a colon is a label up to this many words, and else part of a sentence."""


def item_text(title: str, extra: str) -> str:
    """An item's text for an encoder that may read its beginning alone.

    The title comes first, then what a language model said, in this order:

    1. what stands under a heading, or behind a label, that speaks of keywords;
    2. the same for attributes, features, genres, themes, categories, details, specifications;
    3. other lines of lists;
    4. all the rest, such as prose.

    Within each the model's order is kept. A heading reaches to the next one, to the next label
    outside a list, or to the empty line behind what stands under it. Headings, Markdown and marks
    of lists are removed, and so is the label of keywords; parts are joined by full stops.
    """
    ranked: list[tuple[int, str]] = []
    section, filled = REST, False
    for line in extra.splitlines():
        plain = without_marks(line)
        if not plain:
            section = REST if filled and not line.strip() else section
            continue
        heading = heading_rank(line.strip(), plain)
        if heading:
            section, filled = heading, False
            continue
        listed = bool(MARK.match(line.strip()))
        label, rest = split_label(plain)
        if label and not listed:
            section = REST
        own, filled = rank_of(label), True
        rank = min(section, own, LISTED if listed else REST)
        ranked.append((rank, rest if own == FIRST else plain))
    parts = [tidy(title), *(text for _, text in sorted(ranked, key=lambda part: part[0]))]
    return ". ".join(part.rstrip(" .;,") for part in parts if part.rstrip(" .;,"))


def split_label(plain: str) -> tuple[str, str]:
    """("Genre", "drama") of "Genre: drama"; ("", the line) where nothing is labelled."""
    label, colon, rest = plain.partition(":")
    return (label, rest.strip()) if colon and len(label.split()) <= LABEL_WORDS else ("", plain)


def rank_of(label: str) -> int:
    """Which of the four parts a heading or label announces."""
    ranks = ((FIRST, KEYWORDS), (SECOND, ATTRIBUTES))
    return next((rank for rank, words in ranks if speaks_of(words, label)), REST)


def speaks_of(words: str, label: str) -> bool:
    return bool(re.search(rf"\b(?:{words})\b", label, re.IGNORECASE))


def heading_rank(line: str, plain: str) -> int:
    """What a heading announces; 0 for a line that is none.

    A heading begins with #, or ends with a colon, or is bold from end to end and speaks of what a
    model was asked for: a bold name alone is content.
    """
    label, rest = split_label(plain)
    bold = re.fullmatch(rf"(?:{NUMBER})?(\*\*|__)[^*_]+\1:?", line)
    told = bold and speaks_of(f"{KEYWORDS}|{ATTRIBUTES}|{OTHERS}", plain)
    return rank_of(plain) if line.startswith("#") or told or (label and not rest) else 0


def without_marks(line: str) -> str:
    """A line without Markdown and without the mark of a list."""
    line = re.sub(r"^(?:#{1,6}|>+)\s*", "", line.strip())
    line = MARK.sub("", line, count=1) if MARK.match(line) else line
    line = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line)  # links and pictures
    line = re.sub(r"<[^<>]{1,40}>|`+|\*+|(?<!\w)_+|_+(?!\w)|\|", " ", line)
    line = tidy(line)
    return "" if re.fullmatch(r"[\W_]*", line) else re.sub(r"\s+([:;,.!?])", r"\1", line)
