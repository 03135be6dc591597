"""CCFLLM, the model of CCF-LLM: collaborative vectors fused into the titles of a prompt.

Symbol   Code      Shape         Meaning
x_u^CF   of_users  (B, D)        the user's vector in the CF model
x_i^CF   of_items  (I, D)        the items' vectors in the CF model
x_i^SM   tokens    (N, H)        input embeddings of the N title tokens of a batch
alpha    alpha     (N, H)        weight of every dimension, unbounded; (N, 1) for the scalar form

Eq. 2    Fusion.align            map a CF vector into the language model's input space
Eq. 3    Fusion.weights          GATE = MLP(aligned) + MLP(token)
Eq. 4, 7 CCFLLM.embed            token + sum over CF models of alpha * aligned
Eq. 5    pair_loss               BCE on p_yes, BCE on p_no, k times BPR
Sec. 3.4 train_ccf_llm           the stages, or a strategy of table 4
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reprokit.backbones import check_weights, first_line, load, read_model
from reprokit.collaborative import MF, LightGCN
from reprokit.homemade import quiet
from reprokit.prompting import FusedModel, TextModel, mlp, placed
from reprokit.prompts import HYBRID, PLAIN, SLOTS, USER
from reprokit.runs import write_json
from reprokit.sequential import SASRec

if TYPE_CHECKING:
    from reprokit.bench import Bench
    from reprokit.training import Fitted

GATES = ("dimension", "scalar", "one", "none")


class Fusion(nn.Module):
    """ALG and GATE of one CF model (equations 2 and 3)."""

    def __init__(self, dim: int, width: int, gate: str, factor: int, hidden: int) -> None:
        super().__init__()
        self.align = mlp(dim, factor * dim, width)  # Theta_A
        self.gate = gate
        outputs = {"dimension": width, "scalar": 1}.get(gate, 0)
        if outputs:  # Theta_G; starts at zero, that is with the pure titles
            self.gate_cf = mlp(width, hidden, outputs, zero_last=True)
            self.gate_token = mlp(width, hidden, outputs, zero_last=True)

    def weights(self, aligned: Tensor, tokens: Tensor, owner: Tensor) -> Tensor | float:
        """alpha of each title token, eq. 3: n items, N tokens, owner (N,) says whose each is."""
        if self.gate == "one":
            return 1.0
        return F.embedding(owner, self.gate_cf(aligned)) + self.gate_token(tokens)


class CCFLLM(FusedModel):
    """A causal language model whose prompt holds titles fused with CF vectors.

    Args:
        llm: a Hugging Face causal LM, with or without a LoRA adapter.
        answers: token ids of Yes and No (`prompts.answer_tokens`).
        encoders: one or two CF models (`collaborative.Encoder`): MF, LightGCN, SASRec.
        gate: "dimension" (the paper's), "scalar" (one weight per token), "one" (alpha = 1), "none"
            (titles stay as they are, only the user's slot is filled).
        factor: hidden width of ALG over the CF width.
        gate_hidden: hidden width of the GATE networks; 0 for H / 4.
    """

    def __init__(
        self,
        llm: Any,
        answers: tuple[int, int],
        encoders: Sequence[Any],
        gate: str = "dimension",
        factor: int = 10,
        gate_hidden: int = 0,
    ) -> None:
        super().__init__(llm, answers, encoders, read="pair")
        if gate not in GATES:
            raise ValueError(f"gate must be one of {', '.join(GATES)}, got '{gate}'")
        if not encoders:
            raise ValueError("CCFLLM needs a CF model, got none")
        self.settings = {"gate": gate, "factor": factor, "gate_hidden": gate_hidden}
        hidden = gate_hidden or max(1, self.width // 4)
        self.fusions: Any = nn.ModuleList(
            Fusion(encoder.dim, self.width, gate, factor, hidden) for encoder in encoders
        )

    def embed(
        self, ids: Tensor, items: Tensor, slots: Tensor, users: Tensor, histories: Tensor
    ) -> Tensor:
        """Assemble the prompt's vectors: words as they are, titles fused, the user's slot aligned.

        (B, T) -> (B, T, H). Each item of the batch is aligned once, however often it stands in it.
        """
        words = self.words(ids)
        titles, user_slots = (items > 0) & (slots == 0), slots == SLOTS[USER]
        tokens = words[titles]  # (N, H)
        present, owner = items[titles].unique(return_inverse=True)  # (n,), (N,)
        row, _ = user_slots.nonzero(as_tuple=True)  # the row of each user slot
        fused, of_user = tokens, torch.zeros((), device=ids.device)
        for encoder, fusion in zip(self.encoders, self.fusions, strict=True):
            of_users, of_items = self.collaborative(encoder, users, histories)
            if fusion.gate != "none":
                aligned = fusion.align(F.embedding(present, of_items))  # (n, H), eq. 2
                alpha = fusion.weights(aligned, tokens, owner)  # (N, H), eq. 3
                fused = fused + alpha * F.embedding(owner, aligned)  # eq. 4; two CF models: eq. 7
            else:
                of_user = of_user + 0.0 * of_items.sum()  # several processes expect a gradient
            if len(row):
                of_user = of_user + fusion.align(F.embedding(row, of_users))  # (rows, H)
        words = placed(words, titles, fused)
        return placed(words, user_slots, of_user) if len(row) else words

    def save_pretrained(self, folder: str | Path, with_llm: bool | None = None) -> None:
        """See `save_pretrained` below."""
        save_pretrained(self, Path(folder), with_llm)

    @classmethod
    def from_pretrained(cls, folder: str | Path, llm: Any = None) -> CCFLLM:
        """See `from_pretrained` below."""
        return from_pretrained(Path(folder), llm)

    def train_only(self, adapter: bool, fusion: bool, encoders: bool) -> None:
        """Choose what the next stage trains: Theta_L, Theta_A with Theta_G, Theta_E."""
        for parameter in self.adapter():
            parameter.requires_grad_(adapter)
        self.fusions.requires_grad_(fusion)
        self.encoders.requires_grad_(encoders)

    @torch.no_grad()
    def item_vectors(self, items: Tensor, ids: Sequence[Tensor]) -> dict[str, Tensor]:
        """Aligned CF vector, mean title embedding and mean fused embedding of items: (n, H) each.

        `ids` are the title tokens of each item.
        """
        self.eval()
        at = torch.zeros(1, dtype=torch.int64, device=items.device)
        _, of_items = self.collaborative(self.encoders[0], at, torch.zeros_like(at)[:, None])
        aligned = self.fusions[0].align(F.embedding(items, of_items))
        found: dict[str, list[Tensor]] = {"LLM": [], "fused": []}
        for item, title in zip(items, ids, strict=True):
            row = title[None].to(items.device)
            owner = item.expand_as(row)
            nobody = torch.zeros_like(row)
            fused = self.embed(row, owner, nobody, at, torch.zeros_like(at)[:, None])
            found["LLM"].append(self.words(row).mean(1))
            found["fused"].append(fused.mean(1))
        return {
            "aligned CF": aligned,
            **{name: torch.cat(vectors) for name, vectors in found.items()},
        }


def pair_loss(k: float = 2.0) -> Any:
    """Equation 5 with weight k of its ranking part; returns loss(model, labels, **inputs) -> (B,).

    p_yes and p_no are probabilities over the whole vocabulary at the one position that answers:
    L = BCE(p_yes, y) + BCE(p_no, 1 - y) - k log sigmoid(s (log p_yes - log p_no)), s = 2 y - 1.
    """

    def loss(model: TextModel, labels: Tensor, **inputs: Tensor) -> Tensor:
        logits = model.logits(model.states(**inputs))  # (B, V)
        return pair_loss_of(logits, model.answers, labels, k)

    return loss


def pair_loss_of(logits: Tensor, answers: tuple[int, int], labels: Tensor, k: float) -> Tensor:
    """Equation 5 on logits (B, V) and labels (B,) of 0 and 1: (B,)."""
    y = labels.to(logits)
    total = logits.logsumexp(-1)
    value = torch.zeros_like(total)
    for token, target in zip(answers, (y, 1 - y), strict=True):
        # log p and log (1 - p), the latter from the other tokens: exact where p is near 1.
        rest = logits.index_fill(-1, torch.tensor([token], device=logits.device), -torch.inf)
        log_p, log_rest = logits[:, token] - total, rest.logsumexp(-1) - total
        value = value - target * log_p - (1 - target) * log_rest
    margin = logits[:, answers[0]] - logits[:, answers[1]]
    return value - k * F.logsigmoid(margin * (2 * y - 1))


# --- training -------------------------------------------------------------------------------------
def train_ccf_llm(bench: Bench) -> tuple[CCFLLM, Fitted]:
    """Section 3.4: Theta_L, then Theta_E, Theta_A and Theta_G; or a strategy of Table 4."""
    s, names = bench.settings, bench.settings.cf.split("+")
    encoders, of_cf = zip(*(bench.encoder(name) for name in names), strict=True)
    bench.add_lora()
    bench.seed("fusion")
    answers = bench.answers(HYBRID)
    model = CCFLLM(bench.llm, answers, encoders, s.gate, s.factor, s.gate_hidden)
    loss = pair_loss(s.k)
    shape = {"cf": s.cf, "gate": s.gate, "factor": s.factor, "gate_hidden": s.gate_hidden}
    what: dict[str, Any] = {**bench.lora, "k": s.k, **shape, "on": [one.id for one in of_cf]}
    if s.stages == "joint":
        model.train_only(adapter=True, fusion=True, encoders=s.train_encoder)
        what |= {"stage": "ccf-llm joint", "train_encoder": s.train_encoder}
        return model, bench.train(what, model, HYBRID, loss, s.lr)
    if s.stage1_prompt == "plain":
        text = TextModel(bench.llm, answers)
        what1 = {**bench.lora, "k": s.k, "stage": "ccf-llm plain"}
        first = bench.train(what1, text, PLAIN, loss, s.lr)
    else:
        model.train_only(adapter=True, fusion=False, encoders=False)
        first = bench.train({**what, "stage": "ccf-llm 1"}, model, HYBRID, loss, s.lr)
    if s.stages == "first":
        return model, first
    model.train_only(adapter=False, fusion=True, encoders=s.train_encoder)
    what |= {"stage": "ccf-llm 2", "first": first.id, "train_encoder": s.train_encoder}
    return model, bench.train(what, model, HYBRID, loss, s.fusion_lr)


# --- saving -------------------------------------------------------------------------------------
def save_pretrained(model: CCFLLM, folder: Path, with_llm: bool | None = None) -> None:
    """Write config.json, model.safetensors (fusion and CF models) and adapter/ (peft's format).

    The language model itself is named by where it was loaded from; `with_llm` writes it to llm/,
    which is the default where it was not loaded from anywhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = str(model.causal.config._name_or_path or "")
    with_llm = not source if with_llm is None else with_llm
    encoders: list[dict[str, Any]] = []
    graphs: dict[str, Tensor] = {}
    for at, encoder in enumerate(model.encoders):
        encoders.append({"kind": type(encoder).__name__, **encoder.settings})
        if isinstance(encoder, LightGCN):
            graphs |= {f"graphs.{at}.{name}": ends for name, ends in encoder.interactions().items()}
    own = {n: p.detach().cpu() for n, p in model.state_dict().items() if not n.startswith("llm.")}
    save_file({n: t.contiguous() for n, t in (own | graphs).items()}, folder / "model.safetensors")
    adapted = hasattr(model.llm, "get_base_model")
    with quiet():
        if with_llm:
            # As it was without the adapter, whose layers stand around its own.
            bare = {n.replace(".base_layer", ""): t for n, t in model.causal.state_dict().items()}
            bare = {name: value for name, value in bare.items() if "lora_" not in name}
            model.causal.save_pretrained(folder / "llm", state_dict=bare)
        if adapted:  # not "auto": that asks the hub about the size of the vocabulary
            model.llm.save_pretrained(folder / "adapter", save_embedding_layers=False)
    config = {
        "model": "CCFLLM",
        "answers": list(model.answers),
        **model.settings,
        "encoders": encoders,
        "llm": None if with_llm else source,
        "adapter": adapted,
    }
    write_json(folder / "config.json", config)


def from_pretrained(folder: Path, llm: Any = None) -> CCFLLM:
    """Load what `save_pretrained` wrote; `llm` in place of the language model that it names.

    Raises ValueError, in one line, where a file is missing or damaged, or a weight is missing,
    unknown or of another shape.
    """
    config, tensors = read_saved(folder)
    try:
        encoders = [rebuilt(of, at, tensors) for at, of in enumerate(config["encoders"])]
        yes, no = config["answers"]
        settings = {name: config[name] for name in ("gate", "factor", "gate_hidden")}
        named, adapted = config["llm"], config["adapter"]
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder}: its files do not fit together ({first_line(error)})"
        ) from error
    if llm is None:
        llm = load(named, named).model if named else read_llm(folder / "llm")
    if adapted:
        llm = load_adapter(llm, folder / "adapter")
    model = CCFLLM(llm, (yes, no), encoders, **settings)
    ours = {n: t.shape for n, t in model.state_dict().items() if not n.startswith("llm.")}
    theirs = {n: t.shape for n, t in tensors.items()}
    if ours != theirs:
        wrong = sorted(set(ours.items()) ^ set(theirs.items()))[0][0]
        raise ValueError(f"{folder}/model.safetensors does not fit its config.json: {wrong}")
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a saved model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("model") != "CCFLLM":
            raise ValueError("config.json is another model's")
        return config, load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no whole CCFLLM ({first_line(error)})") from error


def rebuilt(described: dict[str, Any], at: int, tensors: dict[str, Tensor]) -> Any:
    """A CF model by its settings, and by its graph, which is taken out of the tensors."""
    arguments = dict(described)
    kind = ENCODERS[arguments.pop("kind")]
    for name in ("users", "items") if kind is LightGCN else ():
        arguments[name] = tensors.pop(f"graphs.{at}.{name}").numpy()
    return kind(**arguments)


def read_llm(folder: Path) -> Any:
    """A language model that was written without its tokenizer, frozen."""
    try:
        with quiet():
            model, info = read_model(folder, torch.device("cpu"), dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no whole language model ({first_line(error)})") from error
    check_weights(str(folder), info)
    return model.requires_grad_(False).eval()


def load_adapter(llm: Any, folder: Path) -> Any:
    """A peft adapter, checked: every weight of the file is in the model, and nothing else."""
    from peft import PeftModel

    refusal = f"{folder}: the adapter does not fit this language model"
    try:
        stored = load_file(folder / "adapter_model.safetensors")
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it finds missing is refused below
            adapted = PeftModel.from_pretrained(llm, folder)
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{refusal} ({first_line(error)})") from error
    loaded = {
        name.replace(".default", ""): value
        for name, value in adapted.state_dict().items()
        if "lora_" in name
    }
    if set(stored) != set(loaded) or any(
        not torch.equal(loaded[name].cpu().to(value), value) for name, value in stored.items()
    ):
        raise ValueError(refusal)
    return adapted


ENCODERS: dict[str, Any] = {"MF": MF, "LightGCN": LightGCN, "SASRec": SASRec}
