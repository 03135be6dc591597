"""Models that read a prompt of `prompts` and answer it with Yes or No: a causal language model.

Baselines of CCF-LLM's tables, all read at the one position that answers:

TextModel    the prompt alone: zero-shot, instruct-tuned, and TALLRec (Bao et al., RecSys 2023) in
             the form in which CoLLM ran it
Softprompt   six learned vectors in two slots, the same for every user and item, as CoLLM ran it
CoLLM        Zhang et al., arXiv 2310.19488: one mapping puts user and item vectors of a CF model
             into two slots beside the title

Shapes: B rows, T tokens, H width of the language model, D width of the CF model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.collaborative import Encoder
from reprokit.prompts import ITEM, SLOTS, SOFT_ITEM, SOFT_TOKENS, SOFT_USER, USER


class TextModel(nn.Module):
    """A causal language model that reads a prompt and answers at its last position.

    Args:
        llm: a Hugging Face causal LM, with or without a LoRA adapter of peft.
        answers: token ids of Yes and No.
        read: "pair", the log-odds log p(Yes) - log p(No); or "yes", the raw logit of Yes alone, as
            CoLLM reads it.

    Subclasses say which vectors stand in the slots (`embed`).
    """

    inputs: tuple[str, ...] = ()

    def __init__(self, llm: Any, answers: tuple[int, int], read: str = "pair") -> None:
        super().__init__()
        if read not in ("pair", "yes"):
            raise ValueError(f"read must be pair or yes, got '{read}'")
        self.llm = llm
        self.answers = answers
        self.read = read

    @property
    def causal(self) -> Any:
        """The language model without peft's wrapper; its layers have the adapter in them."""
        return self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm

    def adapter(self) -> list[nn.Parameter]:
        """The LoRA weights."""
        return [p for name, p in self.llm.named_parameters() if "lora_" in name]

    def train(self, mode: bool = True) -> TextModel:
        """A frozen adapter has no dropout: the language model is then what it will be scored as."""
        super().train(mode)
        frozen = not any(p.requires_grad for p in self.llm.parameters())
        for name, module in self.llm.named_modules() if frozen else ():
            if "lora_dropout" in name:
                module.eval()
        return self

    def words(self, ids: Tensor) -> Tensor:
        """Input embeddings of tokens: (B, T) -> (B, T, H), in float32."""
        return self.causal.get_input_embeddings()(ids).float()

    def embed(
        self, ids: Tensor, items: Tensor, slots: Tensor, users: Tensor, histories: Tensor
    ) -> Tensor:
        """Vectors of a prompt: (B, T) -> (B, T, H)."""
        return self.words(ids)

    def states(
        self,
        ids: Tensor,
        items: Tensor,
        slots: Tensor,
        last: Tensor,
        users: Tensor,
        histories: Tensor,
        group: Tensor | None = None,
        **prefix: Tensor,
    ) -> Tensor:
        """State at the position that answers: (B, H).

        Prompts are padded on the right: no token sees the padding behind it, so no mask is needed.
        With `group`, the tokens are suffixes, and `prefix_*` hold each distinct prefix once.
        """
        decoder = self.causal.get_decoder()
        kind = self.causal.dtype
        if group is None:
            vectors = self.embed(ids, items, slots, users, histories).to(kind)
            out = decoder(inputs_embeds=vectors, use_cache=False).last_hidden_state
        else:
            heads = {name: prefix[f"prefix_{name}"] for name in ("ids", "items", "slots")}
            length = prefix["prefix_last"] + 1  # (U,)
            vectors = self.embed(**heads, users=users, histories=histories).to(kind)
            cache = decoder(inputs_embeds=vectors, use_cache=True).past_key_values
            cache.batch_select_indices(group)  # (U, ...) -> (B, ...)
            # Suffixes hold no slot of the user.
            own = self.embed(ids, items, slots, users[group], histories[group]).to(kind)
            steps = torch.arange(vectors.shape[1], device=ids.device)
            seen = steps < length[group, None]  # (B, P)
            mask = torch.cat([seen, torch.ones_like(ids, dtype=torch.bool)], 1)
            position = length[group, None] + torch.arange(ids.shape[1], device=ids.device)
            out = decoder(
                inputs_embeds=own,
                past_key_values=cache,
                attention_mask=mask.long(),
                position_ids=position,
                use_cache=True,
            ).last_hidden_state
        return out[torch.arange(len(last), device=last.device), last]  # (B, T, H) -> (B, H)

    def logits(self, states: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Logits of some tokens, or of all: (B, H) -> (B, len(tokens)) or (B, V), in float32."""
        head = self.causal.get_output_embeddings()
        if tokens is None:
            return head(states).float()
        at = list(tokens)
        # A product in half precision has steps that tie the scores of many rows.
        bias = None if head.bias is None else head.bias[at].float()
        return F.linear(states.float(), head.weight[at].float(), bias)

    def score(self, **inputs: Tensor) -> Tensor:
        """One number per row, larger for a likelier Yes: (B,)."""
        yes, no = self.logits(self.states(**inputs), self.answers).unbind(-1)
        return yes if self.read == "yes" else yes - no


def yes_loss(model: TextModel, labels: Tensor, **inputs: Tensor) -> Tensor:
    """CoLLM's loss: binary cross-entropy with the raw logit of Yes; No has no part in it: (B,)."""
    yes = model.logits(model.states(**inputs), model.answers[:1]).squeeze(-1)
    return F.binary_cross_entropy_with_logits(yes, labels.to(yes), reduction="none")


def answer_loss(model: TextModel, labels: Tensor, **inputs: Tensor) -> Tensor:
    """Instruct-tuning: cross-entropy of the answer's token over the vocabulary: (B,)."""
    yes, no = model.answers
    wanted = torch.where(labels == 1, yes, no)
    return F.cross_entropy(model.logits(model.states(**inputs)), wanted, reduction="none")


def placed(vectors: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """`vectors` (B, T, H) with `values` (N, H) at the N true places of `where` (B, T), in order."""
    index = where.flatten().nonzero().squeeze(-1)
    return vectors.flatten(0, 1).index_copy(0, index, values.to(vectors)).view_as(vectors)


class Softprompt(TextModel):
    """Learned vectors in two slots, the same for every user and every item: (2, 3, H)."""

    def __init__(self, llm: Any, answers: tuple[int, int]) -> None:
        super().__init__(llm, answers, read="yes")
        width = self.causal.get_input_embeddings().weight.shape[1]
        # A linear map without bias of two one-hot inputs, with its default start.
        bound = 2**-0.5
        self.virtual = nn.Parameter(torch.empty(2, SOFT_TOKENS, width).uniform_(-bound, bound))

    def embed(
        self, ids: Tensor, items: Tensor, slots: Tensor, users: Tensor, histories: Tensor
    ) -> Tensor:
        vectors = self.words(ids)
        for at, slot in enumerate((SOFT_USER, SOFT_ITEM)):
            where = slots == SLOTS[slot]
            count = int(where.sum()) // SOFT_TOKENS  # rows that have this slot
            vectors = placed(vectors, where, self.virtual[at].repeat(count, 1))
        return vectors


class FusedModel(TextModel):
    """What CoLLM and CCF-LLM share: CF models beside the language model.

    A frozen encoder stays in evaluation mode: it has no dropout, and what it computes for all
    users and items is computed once.
    """

    def __init__(
        self, llm: Any, answers: tuple[int, int], encoders: Sequence[Any], read: str
    ) -> None:
        super().__init__(llm, answers, read)
        self.encoders: Any = nn.ModuleList(encoders)
        self.width: int = self.causal.get_input_embeddings().weight.shape[1]

    def encoders_trained(self) -> bool:
        return any(p.requires_grad for p in self.encoders.parameters())

    def train(self, mode: bool = True) -> FusedModel:
        super().train(mode)
        self.encoders.train(mode and self.encoders_trained())
        return self

    def collaborative(
        self, encoder: Encoder, users: Tensor, histories: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vectors of the rows' users (B, D) and of all items (I, D)."""
        with nullcontext() if self.encoders_trained() else torch.no_grad():
            return encoder.embed(users, histories)


class CoLLM(FusedModel):
    """User and item vectors of one CF model, each mapped into one slot of the prompt.

    The mapping Linear(D -> 10 D), ReLU, Linear(10 D -> H) is one network for users and items.
    """

    def __init__(self, llm: Any, answers: tuple[int, int], encoder: Any, factor: int = 10) -> None:
        super().__init__(llm, answers, [encoder], read="yes")
        self.mapping = mlp(encoder.dim, factor * encoder.dim, self.width)

    def embed(
        self, ids: Tensor, items: Tensor, slots: Tensor, users: Tensor, histories: Tensor
    ) -> Tensor:
        vectors = self.words(ids)
        of_users, of_items = self.collaborative(self.encoders[0], users, histories)
        row, _ = (slots == SLOTS[USER]).nonzero(as_tuple=True)
        if len(row):
            mapped = self.mapping(F.embedding(row, of_users))
            vectors = placed(vectors, slots == SLOTS[USER], mapped)
        where = slots == SLOTS[ITEM]
        if where.any():
            vectors = placed(vectors, where, self.mapping(F.embedding(items[where], of_items)))
        return vectors


def mlp(inputs: int, hidden: int, outputs: int, zero_last: bool = False) -> nn.Sequential:
    """Two layers with a ReLU between them. `zero_last`: it starts as the constant zero."""
    last = nn.Linear(hidden, outputs)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), last)
