"""The first of TALLRec's two stages: general instructions, each with its answer.

Stanford Alpaca's 52,002 instructions where their file is (`alpaca/alpaca_data.json` in the data
directory), or questions about the items of the data set itself, which need no file and no rating.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprokit.data import opened
from reprokit.datasets import DataError
from reprokit.download import require
from reprokit.feedback import Feedback
from reprokit.prompts import encode_inside, plain_ids, tensor
from reprokit.runs import digest

FIELDS = ("instruction", "input", "output")
ANSWER = "\nAnswer:"
MOST = 20_000
"""Questions about a catalogue: as many items as are asked about, whatever its size."""


def read_alpaca(data_dir: Path) -> list[tuple[str, str]]:
    """(instruction with its input, answer) of each entry of the release.

    Raises DataError where the file is missing or is not the release's format.
    """
    (path,) = require("alpaca", data_dir, ("alpaca_data.json",))
    try:
        with opened(path) as file:
            entries = json.load(file)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(f"{path}: not in its publisher's format ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: not a JSON list of instructions, or an empty one")
    pairs = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(f), str) for f in FIELDS):
            raise DataError(f"{path}, entry {number}: not an instruction with input and output")
        told = "\n".join(part for part in (entry["instruction"], entry["input"]) if part.strip())
        pairs.append((f"Task: {told}{ANSWER}", f" {entry['output'].strip()}"))
    return pairs


def catalogue(data: Feedback) -> list[tuple[str, str]]:
    """Questions about items and their genres, with answers; no user and no rating takes part.

    Of each item with genres: what they are, and whether it is of one genre, which it is in every
    other question.
    """
    known = sorted({genre for genres in data.genres for genre in genres})
    items = [item for item in range(1, data.n_items) if data.genres[item]]
    if len(items) > MOST:
        chosen = np.random.default_rng(0).choice(len(items), MOST, replace=False)
        items = [items[at] for at in np.sort(chosen)]
    pairs, word = [], data.item_word
    for number, item in enumerate(items):
        title, genres = data.titles[item], data.genres[item]
        others = [genre for genre in known if genre not in genres]
        pairs.append(
            (f"Task: name the genres of the {word} {title}.{ANSWER}", f" {', '.join(genres)}")
        )
        is_it = number % 2 == 0 or not others
        genre = genres[0] if is_it else others[number // 2 % len(others)]
        pairs.append(
            (
                f"Task: tell whether the {word} {title} is of the genre {genre}.{ANSWER}",
                " Yes" if is_it else " No",
            )
        )
    if not pairs:
        raise DataError(f"{data.name}: no item has a genre, so there is nothing to ask about it")
    return pairs


class Examples:
    """Instructions with answers as tokens; those longer than `limit` are left out.

    `digest` changes with their content, `lengths` (N,) are in tokens.
    """

    def __init__(self, tokenizer: Any, pairs: Sequence[tuple[str, str]], limit: int) -> None:
        asked = plain_ids(tokenizer, [question for question, _ in pairs])
        told = encode_inside(tokenizer, [answer for _, answer in pairs])
        bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        opens = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
        rows = [
            ([bos] * opens + question + answer + [end], opens + len(question))
            for question, answer in zip(asked, told, strict=True)
        ]
        rows = [(ids, first) for ids, first in rows if len(ids) <= limit]
        self.lengths = np.array([len(ids) for ids, _ in rows], np.int64)
        self.first = np.array([first for _, first in rows], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.tokens = np.array([token for ids, _ in rows for token in ids], np.int64)
        self.digest = digest([list(pair) for pair in pairs])

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        """`ids` (B, T) padded on the right, `end` the last position, `first` that of the answer."""
        step = np.arange(int(self.lengths[index].max()))
        inside = step < self.lengths[index, None]
        at = np.where(inside, self.starts[index, None] + step, 0)
        return {
            "ids": torch.from_numpy(np.where(inside, self.tokens[at], 0)),
            "end": tensor(self.lengths[index] - 1),
            "first": tensor(self.first[index]),
        }
