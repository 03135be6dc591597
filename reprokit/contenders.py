"""The ten baselines of LLM-EMF's tables: their settings, and how each is run.

The models stand in `collaborative`, `sequential`, `crossdomain`, `mifn` and `tricdr`; the protocol
in `ranking`. Importing this module loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.click import check, nothing_chosen
from reprokit.crossdata import CROSS_DATA, CrossData, metadata_paths
from reprokit.ranking import (
    Arena,
    Held,
    RankSettings,
    Recipe,
    Rows,
    check_grid,
    count_scores,
    fit_recipe,
    points,
    rank_metrics,
    rounds,
    run_recipe,
)
from reprokit.runs import Job, Result, Unavailable, setting

if TYPE_CHECKING:
    from reprokit.metadata import Metadata

SIZES = (
    *("dim", "hidden", "inner", "blocks", "heads", "layers", "rounds", "members", "roles"),
    *("nodes", "iterations", "negatives", "k"),
)
"""Settings that are 1 or more; then those that are 0 or more, and those that are words."""
AMOUNTS = ("clip", "sampled", "w_cl", "w_tri", "margin")
WORDS = {
    "reads": ("merged", "target"),
    "over": ("domain", "all"),
    "rows": ("positions", "prefixes"),
    "gate_keeps": ("old", "new"),
    "candidate_members": ("gate", "own"),
    "reduce": ("max", "mean"),
    "user": ("id", "items"),
    "variant": ("sum", "last"),
    "scope": ("merged", "domain"),
}


def check_all(settings: Any) -> None:
    """Raises ValueError where a setting of a baseline is out of its range."""
    values = vars(settings)
    for name, value in values.items():
        if name in SIZES:
            check(name, value, value >= 1)
        if name in AMOUNTS:
            check(name, value, 0 <= value < np.inf)
        if name == "dropout":
            check(name, value, 0 <= value < 1)
        if name in WORDS and value not in WORDS[name]:
            raise ValueError(f"{name} must be {' or '.join(WORDS[name])}, got '{value}'")
    if "heads" in values and values["dim"] % values["heads"]:
        raise ValueError(f"heads must divide dim, got {values['heads']} and {values['dim']}")


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class ModelSettings(RankSettings):
    """What every trained baseline sets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_all(self)


@dataclass(frozen=True)
class SequenceSettings(ModelSettings):
    """What the models of one sequence set."""

    dim: int = setting(256, "the paper's q; the data set authors' width")
    dropout: float = setting(0.3, "the paper's")
    reads: str = setting("merged", "open; or target: a domain's own sequence", named=True)
    over: str = setting("domain", "the softmax: a target's own domain, as it is ranked, or all")
    rows: str = setting("positions", "every position in one pass; prefixes: a row for each")
    sampled: int = setting(0, "items of a sampled softmax; 0: the exact one")


@dataclass(frozen=True)
class SASRecSettings(SequenceSettings):
    """SASRec with the full softmax."""

    blocks: int = setting(2, "of the original and of the data set authors")
    heads: int = setting(1, "of the original and of the data set authors")
    inner: int = setting(256, "width of the feed-forward layers, as the states in the original")


@dataclass(frozen=True)
class GRU4RecSettings(SequenceSettings):
    """GRU4Rec with the full softmax."""

    hidden: int = setting(256, "open; as wide as the items")
    layers: int = setting(1, "RecBole's and the original's")


@dataclass(frozen=True)
class SRGNNSettings(SequenceSettings):
    """SR-GNN: a graph for every prefix."""

    dropout: float = setting(0.0, "the model has none")
    rounds: int = setting(1, "the authors' step of propagation")


@dataclass(frozen=True)
class PiNetSettings(ModelSettings):
    """pi-Net as its authors' code runs it, at every position."""

    dim: int = setting(100, "the authors'")
    hidden: int = setting(100, "the authors'")
    members: int = setting(4, "the authors' K")
    dropout: float = setting(0.2, "the authors keep 0.8")
    gate_keeps: str = setting("old", "as the authors' code; their formula has new")
    candidate_members: str = setting("gate", "as the authors' code; their formula has own")
    clip: float = setting(5.0, "gradient norm; the authors clip each value to 5")
    sampled: int = setting(0, "items of a sampled softmax; 0: the exact one")


@dataclass(frozen=True)
class PSJNetSettings(ModelSettings):
    """PSJNet, variant II: split and join. Variant I is pi-Net."""

    dim: int = setting(100, "as pi-Net")
    hidden: int = setting(100, "as pi-Net")
    roles: int = setting(4, "open; as pi-Net's members")
    dropout: float = setting(0.2, "as pi-Net")
    reduce: str = setting(
        "max", "open; over the other domain's steps, as a later code base runs it"
    )
    clip: float = setting(5.0, "as pi-Net")
    sampled: int = setting(0, "items of a sampled softmax; 0: the exact one")


@dataclass(frozen=True)
class MIFNSettings(ModelSettings):
    """MIFN with its knowledge graph; it predicts the last item of each domain."""

    batch_size: int = setting(32, "the authors'")
    dim: int = setting(256, "the authors'")
    dropout: float = setting(0.2, "the authors keep 0.8")
    nodes: int = setting(200, "the authors': of the graph around a sequence")
    iterations: int = setting(1, "the authors'")
    clip: float = setting(5.0, "gradient norm; the authors clip each value to 5")


@dataclass(frozen=True)
class TriCDRSettings(ModelSettings):
    """Tri-CDR: a model for each target domain, started from three pre-trained SASRecs."""

    dim: int = setting(64, "the authors'")
    blocks: int = setting(2, "the authors'")
    heads: int = setting(1, "the authors'")
    inner: int = setting(64, "the authors': as wide as the states")
    dropout: float = setting(0.2, "the authors'")
    w_cl: float = setting(0.1, "theirs for one of two directions; open here")
    w_tri: float = setting(10.0, "theirs for one of two directions; open here")
    margin: float = setting(4.0, "theirs for one of two directions; open here")
    pretrain: bool = setting(True, "the authors' start from three SASRecs")


@dataclass(frozen=True)
class BPRMFSettings(ModelSettings):
    """BPRMF; L2 is that of its paper, on the vectors of a step."""

    batch_size: int = setting(2048, "RecBole's; pairs of user and item")
    dim: int = setting(64, "RecBole's")
    user: str = setting("id", "open; items: the mean of the context's vectors")
    shared: bool = setting(False, "open; a user's vector serves one domain")


@dataclass(frozen=True)
class NCFSettings(ModelSettings):
    """NCF-MLP: no GMF branch."""

    l2: float = setting(0.0, "the authors'; no other value is taken")
    batch_size: int = setting(256, "the authors'; pairs of user and item")
    tower: str = setting("64,32,16,8", "the authors'; the first is both vectors side by side")
    negatives: int = setting(4, "the authors', a pair")
    shared: bool = setting(False, "open; a user's vector serves one domain")

    def __post_init__(self) -> None:
        super().__post_init__()
        check("l2", self.l2, self.l2 == 0)
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)+", self.tower) or self.widths[0] % 2:
            raise ValueError(f"tower must be two or more widths, the first even, got {self.tower}")

    @property
    def widths(self) -> list[int]:
        return [int(width) for width in self.tower.split(",")]


@dataclass(frozen=True)
class ItemKNNSettings:
    """ItemKNN: nothing is trained."""

    k: int = setting(100, "RecBole's and the session lineage's neighbours")
    shrink: float = setting(-1.0, "-1: the variant's own, 0 for sum and 20 for last")
    variant: str = setting("sum", "open; last: similarity to the last item alone")
    scope: str = setting("merged", "open; domain: similarities inside a domain alone")
    grid: str = setting("", "points tried on validation, as k=50,100; none here")

    def __post_init__(self) -> None:
        check_all(self)
        check("shrink", self.shrink, 0 <= self.shrink < np.inf or self.shrink == -1)
        check_grid(self)


# --- how each is run ----------------------------------------------------------------------------
def softmax_recipe(build: Any, settings: Any, clip: float = 0.0, **more: Any) -> Recipe:
    """A NextItem trained with cross-entropy at the targets of its rows."""

    def loss(s: Any, rows: Rows) -> Any:
        from reprokit.nextitem import next_item_loss

        return partial(
            next_item_loss,
            over=getattr(s, "over", "domain"),
            sampled=getattr(s, "sampled", 0),
            per_row=rows.per_row,
        )

    return Recipe(
        build,
        loss,
        reads=getattr(settings, "reads", "merged"),
        rows=getattr(settings, "rows", "positions"),
        clip=clip,
        **more,
    )


def run_sasrec(job: Job) -> Result:
    return run_recipe(job, sasrec)


def sasrec(arena: Arena, settings: Any) -> Recipe:
    def build(s: Any, domain: int) -> Any:
        from reprokit.sequential import NextSASRec

        sizes = arena.data.n_a, arena.data.n_b
        return NextSASRec(*sizes, s.dim, s.max_len, s.blocks, s.heads, s.inner, s.dropout)

    return softmax_recipe(build, settings)


def run_gru4rec(job: Job) -> Result:
    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.sequential import GRU4Rec

            return GRU4Rec(arena.data.n_a, arena.data.n_b, s.dim, s.hidden, s.layers, s.dropout)

        return softmax_recipe(build, settings)

    return run_recipe(job, make)


def run_srgnn(job: Job) -> Result:
    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.sequential import SRGNN

            return SRGNN(arena.data.n_a, arena.data.n_b, s.dim, s.rounds)

        return softmax_recipe(build, settings)

    return run_recipe(job, make)


def run_pinet(job: Job) -> Result:
    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.crossdomain import PiNet

            sizes = arena.data.n_a, arena.data.n_b
            widths = s.dim, s.hidden, s.members, s.dropout
            return PiNet(*sizes, *widths, s.gate_keeps, s.candidate_members)

        return softmax_recipe(build, settings, clip=settings.clip)

    return run_recipe(job, make)


def run_psjnet(job: Job) -> Result:
    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.crossdomain import PSJNet

            sizes = arena.data.n_a, arena.data.n_b
            return PSJNet(*sizes, s.dim, s.hidden, s.roles, s.dropout, s.reduce)

        return softmax_recipe(build, settings, clip=settings.clip)

    return run_recipe(job, make)


def run_tricdr(job: Job) -> Result:
    """Two models, each with its domain as the target; both start from the same three SASRecs."""

    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.tricdr import TriCDR

            return TriCDR(
                arena.data.n_a,
                arena.data.n_b,
                domain,
                dim=s.dim,
                max_len=s.max_len,
                blocks=s.blocks,
                heads=s.heads,
                inner=s.inner,
                dropout=s.dropout,
                w_cl=s.w_cl,
                w_tri=s.w_tri,
                margin=s.margin,
            )

        def loss(s: Any, rows: Rows) -> Any:
            from reprokit.tricdr import tricdr_loss

            return tricdr_loss

        def start(model: Any, domain: int) -> Mapping[str, Any]:
            if not settings.pretrain:
                return {}
            mixed, of_a, of_b = (
                pretrained(arena, settings, reads) for reads in ("merged", "a", "b")
            )
            source, target = (of_b, of_a) if domain == 0 else (of_a, of_b)
            model.load_pretrained(mixed[0], source[0], target[0])
            return {"from": [mixed[1].id, source[1].id, target[1].id]}

        return Recipe(build, loss, models=2, start=start)

    return run_recipe(job, make)


def pretrained(arena: Arena, settings: Any, reads: str) -> tuple[Any, Any]:
    """A SASRec on merged sequences, or on those of one domain, and its stage."""
    from reprokit import training

    s = SASRecSettings(
        **{name: getattr(settings, name) for name in vars(RankSettings())},
        **{
            name: getattr(settings, name) for name in ("dim", "blocks", "heads", "inner", "dropout")
        },
    )
    recipe = replace(sasrec(arena, s), reads=reads)
    if reads != "merged":
        recipe = replace(recipe, judged=(("a", "b").index(reads),))
    ((model, fitted),) = fit_recipe(arena, training.make_accelerator(), "sasrec", s, recipe)
    return model, fitted


def pairs(data: CrossData) -> tuple[np.ndarray, np.ndarray]:
    """User and item of every training event, (E,) each."""
    return np.repeat(data.train.users, data.train.lengths), data.train.items


def user_item_recipe(build: Any, loss: Any) -> Recipe:
    """Trained on pairs of user and item; ranked by the user's id and the context."""

    def rows(data: CrossData) -> Rows:
        users, items = pairs(data)
        return Rows(items[:, None], items[:, None], users)

    def batch(made: Rows) -> Any:
        import torch

        who, what = torch.from_numpy(made.users), torch.from_numpy(made.items[:, 0])
        return lambda index: {"users": who[index], "positives": what[index]}

    return Recipe(build, loss, make_rows=rows, batch=batch, decay=False)


def run_bprmf(job: Job) -> Result:
    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.collaborative import BPRMF

            sizes = arena.data.n_users, arena.data.n_a, arena.data.n_b
            return BPRMF(*sizes, *pairs(arena.sealed), s.dim, s.user, s.shared)

        def loss(s: Any, rows: Rows) -> Any:
            from reprokit.collaborative import bpr_loss

            return partial(bpr_loss, l2=s.l2)

        return user_item_recipe(build, loss)

    result = run_recipe(job, make, arena := Arena(job))
    return with_strangers(result, arena) if job.run.settings.user == "id" else result


def run_ncf(job: Job) -> Result:
    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.collaborative import NCFMLP

            sizes = arena.data.n_users, arena.data.n_a, arena.data.n_b
            return NCFMLP(*sizes, *pairs(arena.sealed), s.widths, s.shared, full=False)

        def loss(s: Any, rows: Rows) -> Any:
            from reprokit.collaborative import bce_loss

            return partial(bce_loss, count=s.negatives)

        return user_item_recipe(build, loss)

    return with_strangers(run_recipe(job, make, arena := Arena(job)), arena)


def with_strangers(result: Result, arena: Arena) -> Result:
    """Say how many ranked rows belong to people whom training does not know."""
    known = np.isin(arena.data.test.users, arena.data.train.users)
    if known.all():
        return result
    share = f"{(~known).sum():,} of {len(known):,} test rows"
    note = (
        f"{share} of {arena.data.name} have a user without training rows: scored by the mean user"
    )
    return replace(result, notes=(*result.notes, note))


def run_itemknn(job: Job) -> Result:
    """Co-occurrence in the training sequences; the grid's point by validation."""
    from reprokit.collaborative import ItemKNN

    arena, best, tried = Arena(job), None, []
    train = arena.sealed.train
    rows = np.repeat(np.arange(len(train)), train.lengths)
    settings = job.run.settings
    for point, s in (one for grid in rounds(settings) for one in points(settings, grid)):
        shrink = None if s.shrink < 0 else s.shrink
        model = ItemKNN(s.k, shrink, scope=s.scope, variant=s.variant)
        model.fit(rows, train.items, (arena.data.n_a, arena.data.n_b))

        def scores(held: Held, at: np.ndarray, domain: int, model: Any = model) -> np.ndarray:
            longest = int(held.sequences.lengths.max())
            return model.scores(held.sequences.padded(at, longest, drop=1), domain)

        scorers = count_scores(scores, arena.data)
        means = [rank_metrics(scorers[d](arena.valid, arena.watched(d)))["mrr"] for d in (0, 1)]
        value = float(np.mean(means))
        tried.append({"point": point, "valid mrr": value})
        if best is None or value > best[0]:
            best = value, point, scorers
    assert best is not None
    selection = nothing_chosen()
    if len(tried) > 1:
        selection = {"split": "valid", "chosen point": best[1], "grid": tried}
    return arena.result(best[2], selection)


def run_mifn(job: Job) -> Result:
    """MIFN; without Amazon's metadata there is no knowledge graph, and no row."""
    from reprokit.knowledge import LEAK_NOTE, Graph, Subgraphs

    source = CROSS_DATA[job.run.dataset]
    known = knowledge(job)
    arena = Arena(job)
    data = arena.sealed
    visible = np.zeros(1 + data.n_items, bool)
    visible[data.train.items] = True
    graphs: dict[int, Graph] = {}
    seen: dict[tuple[int, int, str], Subgraphs] = {}

    def graph_of(s: Any) -> Graph:
        if s.nodes not in graphs:
            graphs[s.nodes] = Graph(
                data.n_a,
                data.n_b,
                known.edges,
                known.item_categories,
                len(known.categories),
                visible,
                n_nodes=s.nodes,
            )
        return graphs[s.nodes]

    def around(s: Any, items: np.ndarray, key: str) -> Subgraphs:
        at = (s.nodes, s.max_len, key)
        if at not in seen:
            graph = graph_of(s)
            seen[at] = Subgraphs(graph, items, graph.nodes(items))
        return seen[at]

    def make(arena: Arena, settings: Any) -> Recipe:
        def build(s: Any, domain: int) -> Any:
            from reprokit.mifn import MIFN

            sizes = data.n_a, data.n_b, len(known.categories)
            return MIFN(*sizes, s.dim, s.dropout, s.iterations)

        def loss(s: Any, rows: Rows) -> Any:
            from reprokit.mifn import mifn_loss

            return mifn_loss

        def batch(rows: Rows) -> Any:
            import torch

            parts = around(settings, rows.items, "train")
            items, targets = torch.from_numpy(rows.items), torch.from_numpy(rows.targets.max(1))
            return lambda index: {
                "items": items[index],
                "targets": targets[index],
                **parts.batch(index),
            }

        def more(held: Held) -> Any:
            rows = held.sequences
            contexts = rows.padded(np.arange(len(rows)), settings.max_len, drop=1)
            return around(settings, contexts, held.name).batch

        return Recipe(build, loss, rows="last", clip=settings.clip, batch=batch, more=more)

    result = run_recipe(job, make, arena)
    return replace(result, notes=(*result.notes, *([] if source.synthetic else [LEAK_NOTE])))


def knowledge(job: Job) -> Metadata:
    """What the items' metadata say, or why the row stays empty."""
    name = job.run.dataset
    if CROSS_DATA[name].synthetic:
        return world_knowledge(name)
    from reprokit.crossdata import load_cross_data
    from reprokit.metadata import read_metadata

    wanted = [path for path in CROSS_DATA[name].optional if "meta_" in path]
    paths = metadata_paths(name, job.data_dir)
    if len(paths) < len(wanted):
        raise Unavailable(
            f"MIFN needs its knowledge graph: put {' and '.join(wanted)} of the 2014 Amazon "
            "release into the data directory"
        )
    data = load_cross_data(name, job.data_dir, job.run.fingerprint)
    return read_metadata(paths, data.item_ids)


def world_knowledge(name: str) -> Metadata:
    """The synthetic world as a shop's metadata: five links of each kind from every item.

    Genres are categories. People who viewed an item also viewed others of its main genre, bought
    those of the other domain after viewing it, bought together what the same people made, and also
    bought items of the genre that follows.
    """
    from reprokit.crossdata import made
    from reprokit.metadata import Metadata
    from reprokit.synthetic import stream

    world = made(name)
    main, domain = world.items.genre_ids[:, 0], world.items.domain
    makers = np.array([people[0] for people in world.items.people])
    follow = world.truth.next_genre[main]
    same = main[:, None] == main
    kinds = {
        "also_bought": follow[:, None] == main,
        "also_viewed": same & (domain[:, None] == domain),
        "buy_after_viewing": same & (domain[:, None] != domain),
        "bought_together": makers[:, None] == makers,
    }
    rng = stream(world.config.seed, "knowledge")
    edges = {}
    for kind, linked in kinds.items():
        np.fill_diagonal(linked, False)
        odds = np.where(linked, rng.random(linked.shape), 2.0)
        best = np.argsort(odds, axis=1)[:, :5]
        kept = np.take_along_axis(odds, best, axis=1) < 1
        head, place = np.nonzero(kept)
        edges[kind] = np.stack([head + 1, best[head, place] + 1], 1)
    item, place = np.nonzero(world.items.genre_ids >= 0)
    genres = np.stack([item + 1, world.items.genre_ids[item, place]], 1)
    names = [str(number) for number in range(int(world.items.genre_ids.max()) + 1)]
    return Metadata({}, {}, edges, names, genres, {})
