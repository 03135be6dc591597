"""The rows of ExplainRec's tables that need no language model: settings, and how each is run.

The models stand in `rankers`, `multimodal` and `content_based`, the protocol in `recommending`, and
how a model is trained and chosen in `ranker_training`. Importing this module loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.click import check, nothing_chosen
from reprokit.content_based import ContentBased, tfidf
from reprokit.ranker_training import AUC, NDCG, Recipe, item_likes, liked_pairs, run_recipe, train
from reprokit.recommending import SAMPLES, Arena, Score, TasteSettings
from reprokit.runs import Estimate, Job, Result, System, setting

if TYPE_CHECKING:
    from torch import Tensor

    from reprokit.ranker_training import Columns

BERT = "google-bert/bert-base-uncased"


# --- settings -----------------------------------------------------------------------------------
CHOICES: Mapping[str, tuple[str, ...]] = {
    "loss": ("bpr", "bce", "ce", "bpr-max"),
    "choose": (NDCG, AUC),
    "images": ("needed", "if any"),
    "vectors": ("encoder", "tfidf"),
}
POSITIVE = (
    *("lr", "batch_size", "max_epochs", "patience", "eval_batch", "dim", "max_len", "blocks"),
    *("heads", "hidden", "layers", "neighbours", "visual_dim", "item_layers", "init_std"),
)


@dataclass(frozen=True)
class TrainedSettings(TasteSettings):
    """What every trained row sets."""

    lr: float = setting(1e-3, "the authors'; the paper prints none")
    l2: float = setting(1e-4, "the authors' weight of the squared norms in the loss")
    batch_size: int = setting(2048, "the authors'; liked rows, or people whose likes are in order")
    max_epochs: int = setting(300, "open; early stopping ends sooner")
    patience: int = setting(10, "open; epochs without a better validation metric, as in RecBole")
    choose: str = setting(
        NDCG, "open; a ranker's own task. In cold and cross-domain sets, without lists, the AUC"
    )
    eval_batch: int = setting(1024, "rows or lists scored at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in POSITIVE:
            value = getattr(self, name, 1)
            check(name, value, 0 < value < math.inf)
        check("l2", self.l2, 0 <= self.l2 < math.inf)
        check("dropout", getattr(self, "dropout", 0), 0 <= getattr(self, "dropout", 0) < 1)
        check("visual", getattr(self, "visual", 0), getattr(self, "visual", 0) >= 0)
        if getattr(self, "dim", 1) % getattr(self, "heads", 1):
            raise ValueError(f"heads must divide dim, got {vars(self)['heads']}")
        check_words(self)


def check_words(settings: Any) -> None:
    """Raises ValueError where a setting is not one of its words."""
    for name, words in CHOICES.items():
        if getattr(settings, name, words[0]) not in words:
            raise ValueError(f"{name} must be one of {words}, got '{getattr(settings, name)}'")


@dataclass(frozen=True)
class LightGCNSettings(TrainedSettings):
    """LightGCN as its authors run it."""

    dim: int = setting(64, "the authors'")
    layers: int = setting(3, "the authors'")
    init_std: float = setting(0.1, "the authors': start vectors from N(0, 0.1^2)")
    loss: str = setting(
        "bpr", "the authors' ranking loss; bce: cross-entropy of all labels, as CoLLM trains it"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("bpr", "bce"):
            raise ValueError(f"loss must be bpr or bce, got '{self.loss}'")


@dataclass(frozen=True)
class SASRecSettings(TrainedSettings):
    """SASRec as its authors run it: each next item against one that is drawn. Padded steps are
    zeros and not masked, as in the widely used PyTorch port."""

    l2: float = setting(0.0, "the authors'; coupled, in Adam")
    batch_size: int = setting(128, "the authors'; people whose likes are in order")
    dim: int = setting(50, "the authors'")
    max_len: int = setting(200, "the authors' for MovieLens; likes that are read, the last ones")
    blocks: int = setting(2, "the authors'")
    heads: int = setting(1, "the authors'")
    dropout: float = setting(0.2, "the authors' for MovieLens")


@dataclass(frozen=True)
class GRU4RecSettings(TrainedSettings):
    """GRU4Rec as RecBole runs it."""

    lr: float = setting(1e-3, "RecBole's")
    l2: float = setting(0.0, "RecBole's; coupled, in Adam")
    batch_size: int = setting(128, "open; people whose likes are in order")
    dim: int = setting(64, "RecBole's")
    hidden: int = setting(128, "RecBole's; the authors have 100")
    dropout: float = setting(0.3, "RecBole's")
    max_len: int = setting(200, "as SASRec reads here")
    loss: str = setting("ce", "RecBole's; bpr-max: the authors' later ranking loss")
    sampled: int = setting(0, "items of a sampled softmax; 0: all. For bpr-max, 0: 256")

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 2 if self.loss == "bpr-max" else 1
        check("sampled", self.sampled, self.sampled == 0 or self.sampled >= least)
        if self.loss not in ("ce", "bpr-max"):
            raise ValueError(f"loss must be ce or bpr-max, got '{self.loss}'")


@dataclass(frozen=True)
class MultimodalSettings(TrainedSettings):
    """What rows that read texts or pictures set."""

    modalities: str = setting("text,visual", "what the paper's data have; the authors have more")
    text_encoder: str = setting(BERT, "the paper's equation 7; no encoder of the row's is printed")
    image_encoder: str = setting(
        "clip", "the paper's equation 7; no encoder of the row's is printed"
    )
    images: str = setting("needed", "without pictures a row is empty; if any: made without them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modalities not in ("text", "visual", "text,visual"):
            raise ValueError(f"modalities must be text and visual, got '{self.modalities}'")

    @property
    def reads(self) -> tuple[str, ...]:
        kinds = {"text": "text", "visual": "image"}
        return tuple(kinds[name] for name in self.modalities.split(","))


@dataclass(frozen=True)
class VBPRSettings(MultimodalSettings):
    """VBPR with its authors' widths, another encoder of pictures, and Adam on batches."""

    lr: float = setting(1e-3, "MMRec's; the authors' steps are of one triple each")
    l2: float = setting(1e-4, "open; MMRec searches from 2 to 1e-5, for each data set")
    batch_size: int = setting(2048, "MMRec's; the authors' steps are of one triple each")
    modalities: str = setting("visual", "the authors'")
    dim: int = setting(10, "the authors'")
    visual_dim: int = setting(10, "the authors'")


@dataclass(frozen=True)
class MMGCNSettings(MultimodalSettings):
    """MMGCN as its authors run it, but for the encoders, and with all of its parameters trained."""

    lr: float = setting(5e-4, "of the authors' 1e-4 and 5e-4")
    batch_size: int = setting(1024, "the authors'")
    patience: int = setting(20, "the authors'")
    dim: int = setting(64, "the authors'")
    layers: int = setting(3, "the authors' code has three, whatever is asked for")
    visual: int = setting(256, "the authors'; width that visual vectors are brought to; 0: none")


@dataclass(frozen=True)
class LATTICESettings(MultimodalSettings):
    """LATTICE as its authors run it, but for the encoders and the slow fall of its step size."""

    lr: float = setting(5e-4, "the authors'; theirs falls by 4% every 50 epochs")
    l2: float = setting(1e-5, "the authors'; of propagated vectors")
    batch_size: int = setting(1024, "the authors'")
    max_epochs: int = setting(200, "the authors'")
    patience: int = setting(50, "the authors': 10 evaluations, one every 5 epochs")
    dim: int = setting(64, "the authors'")
    layers: int = setting(2, "the authors'; over users and items")
    item_layers: int = setting(1, "the authors'; over items that are alike")
    neighbours: int = setting(10, "the authors'; of an item, itself among them")
    raw_weight: float = setting(0.9, "the authors'; of the graph of vectors as they are")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("raw_weight", self.raw_weight, 0 <= self.raw_weight <= 1)


@dataclass(frozen=True)
class ContentSettings(TasteSettings):
    """Content-Based: cosine of an item's text with those of the user's history."""

    vectors: str = setting(
        "encoder", "open; tfidf: words, weighed by how rare they are in training items", named=True
    )
    text_encoder: str = setting("minilm", "ours; the paper names no algorithm and no encoder")
    dislike: float = setting(
        1.0,
        "ours; weight of disliked items' mean: of 0, 0.5 and 1 the best on the validation rows of "
        "MovieLens latest-small (AUC 0.48, 0.49, 0.62)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check("dislike", self.dislike, 0 <= self.dislike < math.inf)
        check_words(self)


# --- how each row is run ------------------------------------------------------------------------
def pair_batch(users: np.ndarray, items: np.ndarray, **more: np.ndarray) -> Columns:
    """Training rows are (user, liked item)."""
    import torch

    held = {"users": users, "items": items, **more}
    tensors = {name: torch.from_numpy(column) for name, column in held.items()}
    return lambda index: {name: tensor[index] for name, tensor in tensors.items()}


def ranked_pairs(arena: Arena, s: Any, build: Callable[..., Any], **more: Any) -> Recipe:
    """A recipe of the pairwise loss; `build(users, items)` has the liked training pairs."""
    from reprokit.collaborative import Seen
    from reprokit.rankers import bpr

    users, items = liked_pairs(arena.sealed)
    loss = bpr(Seen(users, items, arena.sealed.n_items), s.l2)
    return Recipe(lambda: build(users, items), loss, pair_batch(users, items), len(users), **more)


def lightgcn(arena: Arena, s: LightGCNSettings) -> Recipe:
    from reprokit.collaborative import pointwise
    from reprokit.rankers import LightGCN

    data = arena.sealed

    def build(users: np.ndarray, items: np.ndarray) -> Any:
        return LightGCN(data.n_users, data.n_items, users, items, s.dim, s.layers, s.init_std)

    if s.loss == "bpr":
        return ranked_pairs(arena, s, build)
    edges, rows = liked_pairs(data), data.rows("train")
    users, items = data.users[rows].astype(np.int64), data.items[rows].astype(np.int64)
    batch = pair_batch(users, items, labels=data.labels[rows])
    return Recipe(lambda: build(*edges), pointwise, batch, len(rows), decay=True)


def train_lightgcn(
    arena: Arena, settings: LightGCNSettings | None = None
) -> tuple[Score, dict[str, Any], float]:
    """LightGCN as its own row trains it, for systems that build on it: (score, what chose it,
    seconds of earlier starts).

    settings: None for the defaults; the rows and lists that choose are the arena's own.
    """
    own = {item.name: getattr(arena.settings, item.name) for item in fields(TasteSettings)}
    s = replace(settings or LightGCNSettings(), **own)
    chosen = train(arena, lightgcn(arena, s), s, "lightgcn", SYSTEMS["lightgcn"].revision)
    return chosen.score, chosen.fitted.selection(), chosen.fitted.earlier_seconds


def sequences(
    arena: Arena, s: Any, build: Callable[[], Any], loss: Callable[[float], Any]
) -> Recipe:
    """A recipe over people's liked items in order; `loss` is of the mean positions of a row."""
    from reprokit.rankers import liked_sequences

    users, items = liked_sequences(*liked_pairs(arena.sealed), s.max_len + 1)
    per_row = float((items[:, :-1] > 0).sum() / len(items))
    batch = pair_batch(users, items)

    def renamed(index: np.ndarray) -> dict[str, Tensor]:
        found = batch(index)
        return {"users": found["users"], "sequences": found["items"]}

    return Recipe(build, loss(per_row), renamed, len(users), decay=True)


def sasrec(arena: Arena, s: SASRecSettings) -> Recipe:
    from reprokit.collaborative import Seen
    from reprokit.rankers import SASRec, sequence_bce

    n = arena.sealed.n_items
    seen = Seen(*liked_pairs(arena.sealed), n)
    return sequences(
        arena,
        s,
        lambda: SASRec(n, s.dim, s.max_len, s.blocks, s.heads, s.dropout),
        lambda per_row: sequence_bce(seen, per_row),
    )


def gru4rec(arena: Arena, s: GRU4RecSettings) -> Recipe:
    from reprokit.rankers import GRU4Rec, bpr_max, next_ce

    n = arena.sealed.n_items

    def loss(per_row: float) -> Any:
        if s.loss == "ce":
            return next_ce(per_row, s.sampled)
        return bpr_max(s.sampled or 256, per_row=per_row)

    return sequences(arena, s, lambda: GRU4Rec(n, s.dim, s.hidden, dropout=s.dropout), loss)


def features(arena: Arena, s: Any) -> tuple[dict[str, np.ndarray], str, tuple[str, ...]]:
    """Tables of the modalities that are read, their names, and what is missing.

    Raises Unavailable where pictures are needed and there are none, or nothing else is read.
    """
    names, found = s.modalities.split(","), {}
    missing: tuple[str, ...] = ()
    if "visual" in names and not arena.has_pictures:
        if s.images == "needed" or len(names) == 1:
            arena.need_pictures()  # raises, before texts are encoded in vain
        names.remove("visual")
        missing = ("without pictures: the data set has none here",)
    for name in names:
        if name == "text":
            found[name] = arena.text_vectors(s.text_encoder)
        else:
            found[name] = arena.image_vectors(s.image_encoder)
    return found, ",".join(names), missing


def multimodal(arena: Arena, s: Any, build: Callable[..., Any]) -> Recipe:
    """A recipe of the pairwise loss; `build(users, items, tables, names of the modalities)`."""
    tables, names, missing = features(arena, s)
    return ranked_pairs(
        arena,
        s,
        lambda users, items: build(users, items, tables, names),
        what={"features": {"named": names, **arena.job.run.pretrained}},
        deviations=missing,
    )


def vbpr(arena: Arena, s: VBPRSettings) -> Recipe:
    from reprokit.multimodal import VBPR

    sizes = arena.sealed.n_users, arena.sealed.n_items
    return multimodal(
        arena,
        s,
        lambda users, items, tables, names: VBPR(*sizes, tables, s.dim, s.visual_dim, names),
    )


def mmgcn(arena: Arena, s: MMGCNSettings) -> Recipe:
    from reprokit.multimodal import MMGCN

    sizes = arena.sealed.n_users, arena.sealed.n_items
    shape = s.dim, s.layers, s.visual
    return multimodal(
        arena,
        s,
        lambda users, items, tables, names: MMGCN(*sizes, users, items, tables, *shape, names),
    )


def lattice(arena: Arena, s: LATTICESettings) -> Recipe:
    from reprokit.multimodal import LATTICE

    sizes = arena.sealed.n_users, arena.sealed.n_items

    def build(users: np.ndarray, items: np.ndarray, tables: Any, names: str) -> Any:
        return LATTICE(
            *sizes,
            users,
            items,
            tables,
            rebuild=math.ceil(len(users) / s.batch_size),
            dim=s.dim,
            layers=s.layers,
            item_layers=s.item_layers,
            neighbours=s.neighbours,
            raw_weight=s.raw_weight,
            modalities=names,
        )

    return multimodal(arena, s, build)


# --- rows that are not trained ------------------------------------------------------------------
def run_random(job: Job) -> Result:
    """A score that knows nothing: AUC 0.5, NDCG@10 0.045 among 100."""
    arena, rng = Arena(job), np.random.default_rng(job.run.seed)
    return arena.result(
        lambda pairs: rng.random(len(pairs)),
        nothing_chosen(),
        full=lambda rows: rng.random((len(rows), arena.data.n_items)),
    )


def run_popularity(job: Job) -> Result:
    """How often an item is liked in training."""
    arena = Arena(job)
    likes = item_likes(arena.sealed)
    return arena.result(
        lambda pairs: likes[pairs.items],
        nothing_chosen(),
        full=lambda rows: np.tile(likes, (len(rows), 1)),
    )


def run_content(job: Job) -> Result:
    """Content-Based: nothing is trained and nothing is chosen."""
    arena, s = Arena(job).ready(), job.run.settings
    words = s.vectors == "tfidf"
    vectors = tfidf(arena.sealed) if words else arena.text_vectors(s.text_encoder)
    model = ContentBased(arena.sealed, vectors, s.dislike)
    result = arena.result(model.score, nothing_chosen(), full=model.full)
    rows = arena.test.pairs.rows
    strangers = int((model.liked(rows) == 0).sum())
    told = (
        f"{strangers:,} of {len(rows):,} rated test rows of {arena.data.name} have no liked item "
        "in their history: scored by the likeness to what is liked in training"
    )
    return replace(result, notes=(*result.notes, told)) if strangers else result


# --- estimates: upper bounds on two CPU cores ---------------------------------------------------
ENCODED = {"tiny": (1e-4, 2e-4), "minilm": (0.05, 0.0), "clip": (0.1, 0.15)}
"""Seconds for a text and for a picture."""


def scored_pairs(s: TasteSettings, sizes: Mapping[str, int]) -> float:
    """Pairs of one test and one validation pass: rated ones, and those in lists."""
    held = sizes["train"] / 8
    test = (s.rated_rows or held) + (s.rank_rows or held) * (1 + s.negatives)
    return min(test, held * (2 + s.negatives)) + validated(s, sizes)


def validated(s: TasteSettings, sizes: Mapping[str, int]) -> float:
    held = sizes["train"] / 8
    return min(s.valid_rows or held, held) + min(s.valid_lists or held, held) * (1 + s.negatives)


def estimate_counting(s: Any, sizes: Mapping[str, int]) -> Estimate:
    seconds = 20 + sizes["train"] * 2e-6 + scored_pairs(s, sizes) * 1e-6
    ranked = min(s.rank_rows or sizes["train"], sizes["train"] / 8)
    seconds += ranked * sizes["items"] * 1e-8
    return Estimate(seconds, 0.6e9 + 120.0 * sizes["train"], 12 * scored_pairs(s, sizes))


def encoding(s: Any, sizes: Mapping[str, int]) -> dict[str, float]:
    """Seconds of the frozen encoders' work, shared by the rows of a table."""
    kinds = getattr(s, "reads", ("text",) if getattr(s, "vectors", "") == "encoder" else ())
    found = {}
    for place, kind in enumerate(("text", "image")):
        if kind in kinds:
            name = getattr(s, f"{kind}_encoder")
            each = ENCODED.get(name, (0.3, 0.3))[place]
            found[f"{name} on item {kind}s"] = each * sizes["items"]
    return found


def estimate_content(s: Any, sizes: Mapping[str, int]) -> Estimate:
    base = estimate_counting(s, sizes)
    seconds = base.seconds + scored_pairs(s, sizes) * 4e-5
    memory = base.memory + 1e9 + 4 * 400 * sizes["items"]
    return Estimate(seconds, memory, base.disk + 2000 * sizes["items"], encoding(s, sizes))


def estimate_training(row: float, edge: float) -> Callable[[Any, Mapping[str, int]], Estimate]:
    """Seconds of a training row and of an edge in one step, both for each number of its vector."""

    def estimate(s: Any, sizes: Mapping[str, int]) -> Estimate:
        base = estimate_counting(s, sizes)
        width = s.dim + getattr(s, "visual_dim", 0)
        layers = getattr(s, "layers", 1)
        rows = sizes["train"] if not hasattr(s, "max_len") else sizes["users"]
        each = row * width * getattr(s, "max_len", 1)
        epoch = rows * each + rows / s.batch_size * edge * width * layers * sizes["train"]
        epoch += validated(s, sizes) * 1e-6
        if hasattr(s, "neighbours"):  # found in training and in validation
            epoch += 1e-9 * width * sizes["items"] ** 2
        weights = 4 * width * (sizes["users"] + sizes["items"])
        graph = 40 * sizes["train"] if edge else 0
        memory = base.memory + 1e9 + (10 + 4 * layers) * weights + graph
        seconds = base.seconds + s.max_epochs * epoch
        return Estimate(seconds, memory, base.disk + 5 * weights, encoding(s, sizes))

    return estimate


# --- systems ------------------------------------------------------------------------------------
REVIEWS = ("amazon-movies-2014", "amazon-movies-2014-cold")
REASONS = {
    "demo": "small, for a minute on a laptop",
    "small": "small, for a laptop; no image encoder is at hand without a download",
    **dict.fromkeys(REVIEWS, "the authors' for reviews, which are sparser than films' ratings"),
}
DEMO = {**SAMPLES["demo"], "lr": 1e-2, "batch_size": 512, "max_epochs": 40, "patience": 8}
SMALL = {**SAMPLES["small"], "lr": 1e-2, "batch_size": 4096, "max_epochs": 40, "patience": 8}
TINY = {"text_encoder": "tiny", "image_encoder": "tiny", "images": "if any"}
LIGHT = {"text_encoder": "minilm", "image_encoder": "tiny", "images": "if any"}
PEOPLE = {"batch_size": 64}
"""Of models whose training rows are people, of whom there are fewer."""


def trained(
    settings: type,
    make: Callable[[Arena, Any], Recipe],
    row: float,
    edge: float = 0.0,
    demo: Mapping[str, Any] | None = None,
    small: Mapping[str, Any] | None = None,
    reviews: Mapping[str, Any] | None = None,
    revision: int = 1,
) -> System:
    """A trained row with its presets; encoders where it reads texts or pictures."""
    reads = issubclass(settings, MultimodalSettings)
    return System(
        settings,
        partial(run_recipe, make=make, revision=revision),
        estimate_training(row, edge),
        tuned=dict.fromkeys(REVIEWS, reviews) if reviews else {},
        presets={
            "demo": {**DEMO, **(TINY if reads else {}), **(demo or {})},
            "small": {**SMALL, **(LIGHT if reads else {}), **(small or {})},
        },
        reasons=REASONS,
        encoders={"text": "text_encoder", "image": "image_encoder"} if reads else {},
        reads=(lambda s: s.reads) if reads else None,
        revision=revision,
    )


SYSTEMS = {
    "random": System(
        TasteSettings, run_random, estimate_counting, presets=SAMPLES, reasons=REASONS
    ),
    "popularity": System(
        TasteSettings,
        run_popularity,
        estimate_counting,
        seeded=False,
        presets=SAMPLES,
        reasons=REASONS,
    ),
    "lightgcn": trained(LightGCNSettings, lightgcn, 5e-8, 5e-9, demo={"dim": 16}),
    "sasrec": trained(
        SASRecSettings,
        sasrec,
        4e-7,
        demo={**PEOPLE, "dim": 16, "max_len": 20},
        small={**PEOPLE, "lr": 1e-3, "max_len": 50},
        reviews={"max_len": 50, "dropout": 0.5},
    ),
    "gru4rec": trained(
        GRU4RecSettings,
        gru4rec,
        2e-6,
        demo={**PEOPLE, "dim": 16, "hidden": 32, "max_len": 20},
        small={**PEOPLE, "lr": 1e-3, "max_len": 50, "max_epochs": 20},
        reviews={"max_len": 50},
        revision=2,
    ),
    "vbpr": trained(VBPRSettings, vbpr, 2e-7),
    "mmgcn": trained(
        MMGCNSettings,
        mmgcn,
        5e-8,
        3e-8,
        demo={"lr": 2e-3, "dim": 16, "visual": 32},
        small={"lr": 2e-3, "dim": 32, "visual": 64, "max_epochs": 25},
    ),
    "lattice": trained(LATTICESettings, lattice, 5e-8, 1e-8, demo={"dim": 16}),
    "content-based": System(
        ContentSettings,
        run_content,
        estimate_content,
        seeded=False,
        presets={
            "demo": {**SAMPLES["demo"], "text_encoder": "tiny"},
            "small": SAMPLES["small"],
        },
        reasons=REASONS,
        encoders={"text": "text_encoder"},
        reads=lambda s: ("text",) if s.vectors == "encoder" else (),
    ),
}
