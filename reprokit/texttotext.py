"""A T5 that answers prompts about users and items: whole words, loss, yes/no, beams, sentences.

Shapes: B rows, T tokens of a prompt, A tokens of an answer, C candidates, H width of the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.backbones import check_weights, fetch, first_line, load_tokenizer
from reprokit.homemade import quiet, torchvision_fault
from reprokit.runs import RequestError

WORDS = 512
"""Rows of the table of whole words, as in the authors' code."""
IGNORED = -100
"""In place of a target token where an answer has ended."""


def load_t5(name: str, source: str) -> tuple[Any, Any, str]:
    """(model, tokenizer, commit) of a T5 in float32, from safetensors alone.

    Args:
        name: as the user typed it, for messages.
        source: folder or hub name.

    Raises RequestError: it is no T5, cannot be loaded, or lacks weights.
    """
    folder, commit = fetch(source)
    check_kind(name, folder)
    torchvision_fault()
    from safetensors import SafetensorError
    from transformers import T5ForConditionalGeneration

    kind: Any = T5ForConditionalGeneration
    try:
        with quiet():
            t5, info = kind.from_pretrained(
                folder,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in one line
                dtype=torch.float32,
            )
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise RequestError(
            f"T5 '{name}' cannot be loaded from {folder}: {first_line(error)}"
        ) from (error)
    check_weights(name, info, "T5")
    t5.config._name_or_path = source
    return t5, load_tokenizer(name, folder), commit


def check_kind(name: str, folder: Path) -> None:
    """Refuse what is not an encoder-decoder of the T5 kind, by its config.json."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RequestError(
            f"T5 '{name}': {folder / 'config.json'} is damaged ({first_line(error)}). Get it again"
        ) from None
    if kind != "t5":
        raise RequestError(
            f"'{name}' is a {kind} and no T5: P5 needs an encoder-decoder such as "
            "google-t5/t5-small, a folder of one, or tiny"
        )


class P5(nn.Module):
    """T5 with a vector for each whole word, added to the token vectors that its encoder reads.

    Args:
        t5: a T5ForConditionalGeneration; all of it is trained.
        answers: the token of "yes" and that of "no".
        words: "always", "training" (left out when it answers, as the authors' code does by
            mistake) or "never".
        std: of the whole words' vectors at the start; 1 in the authors' code.
        beams: of the answer to a list of candidates.
    """

    def __init__(
        self,
        t5: Any,
        answers: tuple[int, int],
        words: str = "always",
        std: float = 1.0,
        beams: int = 20,
    ) -> None:
        super().__init__()
        self.t5, self.answers, self.words, self.beams = t5, answers, words, beams
        self.table = nn.Embedding(WORDS, t5.config.d_model)
        nn.init.normal_(self.table.weight, std=std)
        self.pad, self.start = t5.config.pad_token_id, t5.config.decoder_start_token_id
        t5.register_state_dict_post_hook(without_aliases)

    def vectors(self, ids: Tensor, words: Tensor) -> Tensor:
        """What the encoder reads, (B, T, H)."""
        tokens = self.t5.shared(ids)
        used = self.words == "always" or (self.words == "training" and self.training)
        return tokens + self.table(words) if used else tokens

    def encode(self, ids: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """(states (B, T, H), which of them are of the prompt (B, T))."""
        mask = ids != self.pad
        states = self.t5.encoder(inputs_embeds=self.vectors(ids, words), attention_mask=mask)
        return states[0], mask

    def logits(self, states: Tensor, mask: Tensor, answer: Tensor) -> Tensor:
        """Of the token behind each of `answer` (B, A), which opens with the start token: (B, A, V).

        Padding at the end of an answer stands behind all that is read, so it needs no mask.
        """
        found = self.t5(
            encoder_outputs=(states,),
            attention_mask=mask,
            decoder_input_ids=answer,
            decoder_attention_mask=torch.ones_like(answer),
            use_cache=False,
        )
        return found.logits.float()

    def score(
        self,
        ids: Tensor,
        words: Tensor,
        candidates: Tensor | None = None,
        room: Tensor | None = None,
    ) -> Tensor:
        """Log-odds of yes against no as the first token of the answer, (B,).

        With `candidates` (B, C, A), answers between which to choose: places in the beam, see
        `beam_places`. With `room` (B, A): the tokens of a written answer, greedily, (B, A).
        """
        states, mask = self.encode(ids, words)
        if candidates is not None:
            return beam_places(self.generate(states, mask, candidates.shape[2], True), candidates)
        if room is not None:
            return self.generate(states, mask, room.shape[1])[:, 0].float()
        first = torch.full((len(ids), 1), self.start, device=ids.device)
        logits = self.logits(states, mask, first)[:, 0]  # (B, V)
        yes, no = self.answers
        return logits[:, yes] - logits[:, no]

    def generate(self, states: Tensor, mask: Tensor, length: int, beam: bool = False) -> Tensor:
        """Answers without their start token, right-padded: (B, 1 or beams, length)."""
        from transformers.modeling_outputs import BaseModelOutput

        count = self.beams if beam else 1
        with quiet():
            found = self.t5.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask.long(),
                do_sample=False,
                num_beams=count,
                num_return_sequences=count,
                max_new_tokens=length,
                early_stopping=beam,
            )[:, 1:]
        found = F.pad(found, (0, length - found.shape[1]), value=self.pad)
        return found.view(-1, count, length)


def answer_loss(model: P5, ids: Tensor, words: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the answer's tokens, averaged over each answer: (B,).

    targets: (B, A) tokens with the end token, padded with `IGNORED`.
    """
    states, mask = model.encode(ids, words)
    before = F.pad(targets[:, :-1], (1, 0), value=model.start)
    logits = model.logits(states, mask, before.masked_fill(before == IGNORED, model.pad))
    each = F.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )  # (B, A)
    return each.sum(1) / (targets != IGNORED).sum(1)


def beam_places(beams: Tensor, candidates: Tensor) -> Tensor:
    """Scores of candidates by the order of the beam, (B, C + 1).

    The best of K beams gives K, the last 1; a candidate that is in no beam has 0. The last column
    counts the beams that are no candidate, such as an id that does not exist.

    beams: (B, K, A), candidates: (B, C, A); tokens with the end token, right-padded.
    """
    same = (candidates[:, :, None] == beams[:, None]).all(-1)  # (B, C, K)
    worth = torch.arange(beams.shape[1], 0, -1, device=beams.device)
    places = (same * worth).amax(2)
    invented = (~same.any(1)).sum(1, keepdim=True)
    return torch.cat([places, invented], 1).float()


def without_aliases(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    """Leave out further names of a tied weight: it is kept, and written, once."""
    seen: set[tuple[int, torch.Size]] = set()
    for name in [name for name in state if name.startswith(prefix)]:
        value = state[name]
        key = value.data_ptr(), value.shape
        if value.numel() and key in seen:
            del state[name]
        seen.add(key)
