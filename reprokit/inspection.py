"""Single items of a trained CCF-LLM: the map of figure 4 and the case of table 5.

Importing this module loads no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reprokit import click
from reprokit.bench import Bench, scored
from reprokit.data import CTRData, Rows
from reprokit.runs import Job, Result, Unavailable


# --- figure 4 -----------------------------------------------------------------------------------
def run_map(job: Job) -> Result:
    """Figure 4: aligned CF vectors, mean title embeddings and fused ones of 1,000 items."""
    import torch
    from sklearn.manifold import TSNE

    from reprokit.fusion import train_ccf_llm
    from reprokit.prompts import HYBRID
    from reprokit.training import generator

    bench, s = Bench(job, HYBRID), job.run.settings
    model, fitted = train_ccf_llm(bench)
    pool = np.arange(1, bench.data.n_items)
    rng = generator(job.run.seed, "items of the map")
    chosen = np.sort(rng.choice(pool, min(s.items, len(pool)), replace=False))
    starts, tokens = bench.vocabulary.starts, bench.vocabulary.tokens.astype(np.int64)
    titles = [torch.from_numpy(tokens[starts[i] : starts[i + 1]]) for i in chosen]
    found = model.item_vectors(torch.from_numpy(chosen).to(bench.accelerator.device), titles)
    vectors = {name: value.float().cpu().numpy() for name, value in found.items()}
    stacked = np.concatenate(list(vectors.values()))
    perplexity = min(s.perplexity, (len(stacked) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=job.run.seed).fit_transform(
        stacked
    )
    names = np.repeat(list(vectors), len(chosen))
    metrics = {
        "separation/aligned": nearest_agree(vectors["aligned CF"], vectors["LLM"]),
        "separation/fused": nearest_agree(vectors["fused"], vectors["LLM"]),
        "distance/fused": float(
            np.linalg.norm(vectors["fused"] - vectors["LLM"], axis=1).mean()
            / np.linalg.norm(vectors["LLM"], axis=1).mean()
        ),
    }
    points = {
        "points/items": np.tile(bench.data.item_ids[chosen], len(vectors)),
        "points/titles": np.tile([bench.data.titles[i] for i in chosen], len(vectors)),
        "points/modality": names,
        "points/x": plane[:, 0].astype(np.float32),
        "points/y": plane[:, 1].astype(np.float32),
    }
    return Result(
        metrics,
        points,
        fitted.selection(),
        {**bench.data.counts, **bench.counts},
        bench.deviations,
        bench.notes(),
        bench.earlier_seconds,
    )


def nearest_agree(first: np.ndarray, second: np.ndarray) -> float:
    """Share of vectors whose nearest other vector is of their own kind: 1 where two clouds stand
    apart, about 0.5 where they cannot be told from each other, 0 where each has its twin."""
    from sklearn.neighbors import NearestNeighbors

    both = np.concatenate([first, second])
    kind = np.repeat([0, 1], [len(first), len(second)])
    near = NearestNeighbors(n_neighbors=2).fit(both).kneighbors(both, return_distance=False)
    other = np.where(near[:, 0] == np.arange(len(both)), near[:, 1], near[:, 0])
    return float((kind[other] == kind).mean())


# --- table 5 ------------------------------------------------------------------------------------
CASE = (
    "Deconstructing Harry",
    "Big Daddy",
    "But I'm a Cheerleader",
    "Desperately Seeking Susan",
    "Lake Placid",
)
CASE_LABELS = (1, 0, 1, 1, 0)


def case_rows(data: CTRData) -> tuple[np.ndarray, bool]:
    """Test rows of the paper's user and films, found by title and label; True: they were found.

    Elsewhere the first user with five test films, both labels among them, stands in.
    """
    rows = data.test
    titles = np.array([data.titles[item] for item in rows.items])
    for user in np.unique(rows.users):
        mine = np.flatnonzero(rows.users == user)
        found = [mine[[t.startswith(f"{film} (") for t in titles[mine]]] for film in CASE]
        if all(len(at) == 1 for at in found):
            at = np.concatenate(found)
            if tuple(rows.labels[at]) == CASE_LABELS:
                return at, True
    for user in np.unique(rows.users):
        at = np.flatnonzero(rows.users == user)[:5]
        if len(at) == 5 and 0 < rows.labels[at].sum() < 5:
            return at, False
    raise Unavailable("no user has five test films with both labels")


def run_case(job: Job) -> Result:
    """Table 5: three systems rank five test films of one user."""
    from reprokit.fusion import train_ccf_llm
    from reprokit.prompting import TextModel
    from reprokit.prompts import HYBRID, PLAIN

    bench = Bench(job, PLAIN, HYBRID)
    at, found = case_rows(bench.data)
    rows = Rows(**{name: value[at] for name, value in vars(bench.data.test).items()})
    cf = click.SYSTEMS["lightgcn"].configure(
        job.run.dataset.removeprefix("demo-"), job.run.settings.cf_preset, {}
    )
    table_row, fitted = bench.encoder("lightgcn", cf)
    inputs = click.batches(bench.data, rows, table_row.inputs, 0)
    scores = {"lightgcn": fitted.predict(inputs, len(rows))}
    raw = TextModel(bench.llm, bench.answers(PLAIN))
    prompts = bench.prompts(bench.data, rows, PLAIN, None)
    scores["llm"] = scored(raw, bench.untrained(raw).predict, prompts)
    model, chosen = train_ccf_llm(bench)
    prompts = bench.prompts(bench.data, rows, HYBRID, None)
    scores["ccf-llm"] = scored(model, chosen.predict, prompts)
    metrics: dict[str, Any] = {}
    for number, item in enumerate(rows.items):
        genres = bench.data.genres[item].replace("|", ", ")
        title = "" if found else f"{bench.data.titles[item]}: "
        metrics |= {f"genres/{number}": title + genres, f"label/{number}": int(rows.labels[number])}
    for name, values in scores.items():
        above = (values[None] > values[:, None]).sum(1) + (values[None] == values[:, None]).sum(1)
        metrics |= {f"{name}/{number}": int(rank) for number, rank in enumerate(above)}
    notes = () if found else ("five test films of another user stand in for the paper's",)
    return Result(
        metrics,
        {},
        chosen.selection(),
        {**bench.data.counts, **bench.counts},
        bench.deviations,
        (*bench.notes(), *notes),
        bench.earlier_seconds,
    )
