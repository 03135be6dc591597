"""Time and memory of LATTICE's graph between items, at the size of MovieLens-25M's catalogue.

Run: python benchmarks/item_graph.py

neighbours  The 10 items of highest cosine for each of 62,423, from random vectors 384 wide:
            seconds, and the peak of resident memory above what the process held before, its
            vectors included.
training    With --training: one pass of LATTICE with these as its text that builds the learned
            graph, with its gradients, and one that does not; users and ratings are random, few.

A dense matrix of cosines would be items x items x 4 bytes, for each modality, each half of the
graph and each of their gradients. Memory is sampled by the system: peaks only grow, so that the
training's includes the neighbours' and the check of them.

Exit status 1: the neighbours of some rows are not those of a dense computation, or memory is above
`--most-mb`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also runs from a checkout

from reprokit.multimodal import LATTICE, nearest
from reprokit.provenance import peak_memory
from reprokit.rankers import Seen, bpr

CHECKED = 200
"""Rows that are compared with a sort of all cosines."""


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = perf_counter()
    return function(), perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=62_423)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--most-mb", type=float, default=1000.0, help="of the neighbours")
    parser.add_argument("--training", action="store_true", help="also passes of LATTICE")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    before = peak_memory()
    vectors = torch.randn(asked.items, asked.width)
    found, seconds = timed(lambda: nearest(vectors, asked.neighbours))
    memory = (peak_memory() - before) / 2**20
    print(f"torch {torch.__version__}, {asked.threads} of {os.cpu_count()} cores")
    print(f"{asked.items:,} items, {asked.width} wide, {asked.neighbours} neighbours")
    print("| what | seconds | peak, MB |")
    print("| --- | --- | --- |")
    print(f"| neighbours | {seconds:.1f} | {memory:.0f} |")
    print(f"| a dense matrix, by arithmetic | | {4 * asked.items**2 / 2**20:,.0f} |")
    unit = torch.nn.functional.normalize(vectors)
    dense = torch.sort(unit[:CHECKED] @ unit.T, dim=1, descending=True, stable=True).indices
    same = torch.equal(dense[:, : asked.neighbours], found[:CHECKED])
    if asked.training:
        for name, seconds in passes(vectors.numpy(), asked.neighbours):
            print(f"| {name} | {seconds:.1f} | {(peak_memory() - before) / 2**20:.0f} |")
    if not same:
        print(f"the neighbours of the first {CHECKED} rows are not those of a sort of all cosines")
    if memory > asked.most_mb:
        print(f"{memory:.0f} MB are more than --most-mb {asked.most_mb:.0f}")
    return int(not same or memory > asked.most_mb)


def passes(vectors: np.ndarray, neighbours: int) -> list[tuple[str, float]]:
    """What a training pass with and without building takes, and what making the model does."""
    rng, n_items = np.random.default_rng(0), len(vectors)
    table = np.concatenate([np.zeros_like(vectors[:1]), vectors[1:]])
    users, items = rng.integers(1, 600, 50_000), rng.integers(1, n_items, 50_000)
    data = (600, n_items, users, items, {"text": table})
    model, making = timed(
        lambda: LATTICE(*data, rebuild=2, neighbours=neighbours, modalities="text")
    )
    loss = bpr(Seen(users, items, n_items), 1e-5)
    batch = {
        "users": torch.from_numpy(users[:2048]),
        "items": torch.from_numpy(items[:2048]),
    }
    times = [
        timed(lambda: loss(model.train(), **batch).mean().backward())[1],
        timed(lambda: loss(model, **batch).mean().backward())[1],
    ]
    names = ("LATTICE: making it", "a pass that builds the graph", "a pass that does not")
    return list(zip(names, [making, *times], strict=True))


if __name__ == "__main__":
    sys.exit(main())
