"""What describes a review that is to be predicted: profiles of its user and its business (MMREC).

Every number comes from other training reviews, and of the user also from the history reviews of the
release; a row's own review, its rating, text and pictures, is left out. The one exception is the
setting that the paper's text allows: `leakage="as_printed"` describes a user and a business once,
the current review included.

    dense   counts and mean ratings; with a language model also the price tag
    text    mean vector of the reviews (baseline), or the vector of their summary (proposed)
    image   mean vector of the business's pictures (baseline), or of their captions (proposed)
    types   what kind of business it is, several values each, padded (proposed)

Importing this module loads no torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reprokit.pooling import Groups, Mean, blocks, mean_values
from reprokit.progress import Progress
from reprokit.reviewdata import no_images
from reprokit.reviews import Reviews
from reprokit.runs import RequestError, Unavailable
from reprokit.summaries import (
    EXTRACTIVE,
    PRICES,
    Asked,
    ReviewSets,
    price_tags,
    summaries,
    type_codes,
    type_names,
    vocabulary,
)

REVISION = 1
"""Of what is described here: raised when a change moves a feature."""


class Vectors(Protocol):
    """Rows (B,) -> their vectors (B, D), float32."""

    @property
    def width(self) -> int: ...

    def __call__(self, rows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Profile:
    """What describes all rows of a data set."""

    dense: np.ndarray
    """(N, K) float32, not scaled."""
    dense_names: tuple[str, ...]
    vectors: dict[str, tuple[Vectors, ...]]
    """By field of the ranking model: what is concatenated and compressed for it."""
    types: np.ndarray | None = None
    """(N, most) int64, padded with `n_types`."""
    n_types: int = 0
    what: Mapping[str, Any] = field(default_factory=dict)
    """What decides each field's vectors, and the rest under "", for the identity of a stage."""
    notes: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frozen:
    """The pretrained models behind a profile, where their work is kept, and who is told."""

    folder: Path
    progress: Progress
    fingerprints: Mapping[str, str]
    """By kind: "llm", "text", "image", "caption"."""


# --- groups of documents ------------------------------------------------------------------------
def rating_groups(data: Reviews, of_row: np.ndarray, n_groups: int) -> Groups:
    """Training reviews as documents, in groups by user or by business."""
    train = data.rows("train")
    return Groups(of_row[train], of_row, train, np.arange(len(train)), n_groups)


def text_groups(data: Reviews, side: str) -> tuple[Groups, list[str]]:
    """Training reviews that have a text, in groups by "user" or "item"; and the texts.

    A user's documents are followed by the reviews that only the release's histories hold.
    """
    rows = np.array([row for row in data.rows("train") if data.texts[row].strip()], np.int64)
    texts = [data.texts[row] for row in rows]
    codes, n_groups = of_side(data, side)
    of_document = codes[rows]
    if side == "user":
        of_document = np.concatenate([of_document, data.extra_users])
        texts += data.extra_texts
    return Groups(of_document, codes, rows, np.arange(len(rows)), n_groups), texts


def picture_groups(data: Reviews, usable: np.ndarray) -> tuple[Groups, np.ndarray]:
    """Pictures by business: (groups, the picture of each document).

    usable: (pictures,) whether something is known of a picture. A picture that belongs to the
    business itself, as in a shop's catalogue, is no row's own.
    """
    train = data.split[data.picture_rows] == 0
    pairs = np.flatnonzero(train & usable[data.picture_of])
    rows, of = data.picture_rows[pairs], data.picture_of[pairs]
    items = np.flatnonzero(data.item_pictures >= 0)
    items = items[usable[data.item_pictures[items]]]
    groups = Groups(
        np.concatenate([data.items[rows], items]),
        data.items,
        rows,
        np.arange(len(rows)),
        data.n_items,
    )
    return groups, np.concatenate([of, data.item_pictures[items]])


def of_side(data: Reviews, side: str) -> tuple[np.ndarray, int]:
    return (data.users, data.n_users) if side == "user" else (data.items, data.n_items)


# --- dense features -----------------------------------------------------------------------------
DENSE = ("reviews of the business, log(1 + n)", "mean rating by the user", "of the business")


def dense_features(data: Reviews) -> tuple[np.ndarray, tuple[str, ...]]:
    """The paper's three dense features, (N, 3); and what a reader must know of them.

    Where a user or a business has no other training review, its mean is that of all training
    reviews but the row's own.
    """
    ratings = data.ratings[data.rows("train")].astype(np.float64)
    of_user = rating_groups(data, data.users, data.n_users)
    of_item = rating_groups(data, data.items, data.n_items)
    columns = (
        np.log1p(of_item.others),
        mean_values(ratings, of_user),
        mean_values(ratings, of_item),
    )
    notes = []
    for name, groups in (("user", of_user), (data.kind, of_item)):
        alone = {
            split: (np.mean(groups.others[rows] == 0) if len(rows := data.rows(split)) else 0.0)
            for split in ("train", "valid", "test")
        }
        shares = ", ".join(f"{share:.0%} of {split}" for split, share in alone.items())
        notes.append(
            f"{data.name}: no other training review of their {name}, so the mean rating of all, "
            f"have {shares} rows"
        )
    return np.stack(columns, axis=1).astype(np.float32), tuple(notes)


# --- vectors ------------------------------------------------------------------------------------
class Looked:
    """A vector for each row, looked up; zeros where there is none."""

    def __init__(self, vectors: np.ndarray, index: np.ndarray) -> None:
        self.vectors, self.index = vectors, index
        """(V, D), and (N,) with -1 for none."""
        self.width = int(vectors.shape[1])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        at = self.index[rows]
        found = np.asarray(self.vectors[at], np.float32)
        return np.where(at[:, None] >= 0, found, np.float32(0))


def embedded(
    texts: Sequence[str], encoder: str, frozen: Frozen
) -> tuple[np.ndarray, np.ndarray, int]:
    """(vectors of the distinct texts, the vector of each text with -1 for an empty one, how many
    distinct texts are longer than the encoder reads)."""
    from reprokit.features import text_features

    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if not distinct:
        raise Unavailable("there is no text to make vectors of")
    number = {text: at for at, text in enumerate(distinct)}
    index = np.array([number.get(text, -1) for text in texts], np.int64)
    vectors, counts = text_features(
        encoder, distinct, frozen.folder, frozen.progress, frozen.fingerprints["text"]
    )
    return vectors, index, counts["cut"]


def cut_note(what: str, cut: int, texts: int, encoder: str) -> tuple[str, ...]:
    if not cut:
        return ()
    return (f"{cut:,} of {texts:,} {what} are longer than {encoder} reads, which cuts them",)


def mean_reviews(data: Reviews, encoder: str, frozen: Frozen) -> tuple[list[Vectors], list[str]]:
    """The baseline's text: mean vectors of a user's and of a business's other reviews."""
    found: list[Vectors] = []
    notes: list[str] = []
    of_user, texts = text_groups(data, "user")
    vectors, index, cut = embedded(texts, encoder, frozen)
    notes += cut_note("reviews", cut, len(vectors), encoder)
    of_item, _ = text_groups(data, "item")
    for name, groups in (("user", of_user), (data.kind, of_item)):
        mean = Mean(vectors, index[: len(groups.of_document)], groups)
        notes.append(empty_note(data, f"reviews of their {name}", mean.empty))
        found.append(mean)
    return found, notes


def empty_note(data: Reviews, what: str, empty: np.ndarray) -> str:
    """How many rows nothing is known of."""
    held = data.split > 0
    return (
        f"{data.name}: no other {what}, so the mean of all, have {empty[~held].sum():,} of "
        f"{(~held).sum():,} training rows and {empty[held].sum():,} of {held.sum():,} held-out ones"
    )


def seen_pictures(data: Reviews) -> np.ndarray:
    """The pictures that may describe a row: those of training rows, and a shop's own. (P,)"""
    train = data.picture_of[data.split[data.picture_rows] == 0]
    return np.unique(np.concatenate([train, data.item_pictures[data.item_pictures >= 0]]))


def mean_pictures(data: Reviews, encoder: str, frozen: Frozen, key: str) -> tuple[Mean, list[str]]:
    """The baseline's image: the mean vector of a business's pictures."""
    from reprokit.features import image_features

    seen = seen_pictures(data)
    vectors, counts = image_features(
        encoder,
        lambda at: data.picture(int(seen[at])),
        data.has_picture[seen],
        frozen.folder,
        key,
        frozen.progress,
        frozen.fingerprints["image"],
    )
    usable = np.concatenate([vectors[rows].any(axis=1) for rows in blocks(np.arange(len(seen)))])
    return pictured(data, seen, vectors, np.where(usable, np.arange(len(seen)), -1), counts)


def mean_captions(
    data: Reviews, captioner: str, encoder: str, frozen: Frozen, batch: int
) -> tuple[Mean, list[str]]:
    """The proposed model's image: the mean vector of the captions of a business's pictures."""
    from reprokit.captions import captions

    seen = seen_pictures(data)
    said, facts = captions(
        captioner,
        lambda at: data.picture(int(seen[at])),
        [data.pictures[at] for at in seen],
        frozen.folder,
        frozen.progress,
        frozen.fingerprints["caption"],
        batch=batch,
        versions=[data.picture_versions[at] for at in seen],
    )
    if not any(said):
        raise Unavailable(f"{data.name}: '{captioner}' says nothing of any picture")
    vectors, index, cut = embedded(said, encoder, frozen)
    mean, notes = pictured(data, seen, vectors, index, facts)
    notes += cut_note("captions", cut, len(vectors), encoder)
    if facts["cut"] or facts["empty"]:
        notes.append(
            f"{data.name}: of the captions by {captioner} {facts['cut']:,} were cut at the most "
            f"tokens, {facts['empty']:,} are empty and their pictures count as unknown"
        )
    if facts["note"]:
        notes.append(str(facts["note"]))
    return mean, notes


def pictured(
    data: Reviews,
    seen: np.ndarray,
    vectors: np.ndarray,
    index: np.ndarray,
    counts: Mapping[str, Any],
) -> tuple[Mean, list[str]]:
    """Mean vectors by business, from the vector of each seen picture, -1 for none."""
    of_picture = np.full(len(data.pictures), -1)
    of_picture[seen] = index
    groups, pictures = picture_groups(data, of_picture >= 0)
    if not len(pictures):
        raise Unavailable(f"{data.name}: no training review has a picture that can be read")
    mean = Mean(vectors, of_picture[pictures], groups)
    notes = [
        f"{data.name}: {(index >= 0).sum():,} of {len(seen):,} pictures of training reviews are "
        f"used ({counts['missing']:,} missing, {counts['unreadable']:,} unreadable)",
        empty_note(data, f"pictures of their {data.kind}", mean.empty),
    ]
    return mean, notes


# --- what a language model says -----------------------------------------------------------------
@dataclass(frozen=True)
class Described:
    """Sets of reviews, each asked about once, and the set that describes each row."""

    sets: ReviewSets
    of_row: np.ndarray
    """(N,) number of a row's set."""
    shortened: int
    """Sets that had more reviews than are read."""


def described_by(data: Reviews, side: str, leakage: str, most: int) -> Described:
    """The sets of reviews that describe the rows: those of a user or of an item.

    exclude_current: a training row's set lacks its own review; as_printed: it does not.
    """
    groups, texts = text_groups(data, side)
    sets, whole, without = ReviewSets.leave_one_out(
        texts, groups.of_document, groups.n_groups, most
    )
    of_row, others = whole[groups.of_row], groups.sizes[groups.of_row]
    if leakage == "exclude_current":
        of_row[groups.own_rows] = without[groups.own_documents]
        others = groups.others
    used, of_row = np.unique(of_row, return_inverse=True)
    distinct, number, _ = picked(sets, used).capped(most)
    of_row = number[of_row]
    longer = np.unique(of_row[others > most]) if most else np.empty(0)
    return Described(distinct, of_row, len(longer))


def picked(sets: ReviewSets, chosen: np.ndarray) -> ReviewSets:
    """Some of the sets."""
    lengths = np.diff(sets.starts)[chosen]
    starts = np.append(0, np.cumsum(lengths))
    at = np.repeat(sets.starts[chosen] - starts[:-1], lengths) + np.arange(starts[-1])
    return replace(sets, starts=starts, members=sets.members[at])


def summary_vectors(
    data: Reviews,
    described: Mapping[str, Described],
    asked: Asked,
    encoder: str,
    frozen: Frozen,
    leakage: str,
) -> tuple[list[Vectors], list[str]]:
    """The proposed model's text: vectors of the summaries of a user and of a business."""
    found: list[Vectors] = []
    notes: list[str] = []
    for side, kind in (("user", "user"), ("item", data.kind)):
        one = described[side]
        said, facts = summaries(one.sets, kind, asked, frozen.folder, frozen.progress)
        vectors, index, cut = embedded(said, encoder, frozen)
        of_row = index[one.of_row]
        found.append(Looked(vectors, of_row))
        none, held = of_row < 0, data.split > 0
        notes.append(
            f"{data.name}, {leakage}: {len(vectors):,} distinct summaries of a {kind} by "
            f"{asked.llm}; none, "
            f"so zeros, have {none[~held].sum():,} training rows and {none[held].sum():,} "
            f"held-out ones; {one.shortened:,} sets had more reviews than are read, "
            f"{facts['shortened prompts']:,} prompts were shortened"
        )
        notes += cut_note("summaries", cut, len(vectors), encoder)
        notes += filter(None, [remark(f"summaries of a {kind}", facts)])
    return found, notes


PRICE_LEVEL = {"none": 0.0, "cheap": -1.0, "fair": 0.0, "overpriced": 1.0}


def price_features(
    data: Reviews, one: Described, asked: Asked, frozen: Frozen, leakage: str
) -> tuple[np.ndarray, list[str]]:
    """The price tag as two numbers, (N, 2): its level, and whether there is one."""
    codes, facts = price_tags(one.sets, data.kind, asked, frozen.folder, frozen.progress)
    levels = np.array([[PRICE_LEVEL[name], float(name != "none")] for name in PRICES])
    tags = ", ".join(f"{name} {facts[name]:,}" for name in PRICES)
    note = (
        f"{data.name}, {leakage}: price tags of {len(one.sets):,} sets of reviews by "
        f"{asked.llm}: {tags}; "
        f"{facts['unclear']:,} answers fit no tag and count as none; "
        f"{facts['shortened prompts']:,} prompts were shortened"
    )
    notes = [note, *filter(None, [remark("price tags", facts)])]
    return levels[codes][one.of_row].astype(np.float32), notes


def remark(what: str, facts: Mapping[str, Any]) -> str:
    """What a reader must know of the answers themselves; empty where that is nothing."""
    return f"{what}: {facts['note']}" if facts["note"] else ""


def type_features(
    data: Reviews,
    one: Described,
    asked: Asked,
    frozen: Frozen,
    leakage: str,
    most: int,
    n_types: int,
) -> tuple[np.ndarray, int, list[str]]:
    """Types of a row's business: (codes (N, most), number of types, notes).

    The vocabulary is that of the training rows.
    """
    names, told = type_names(
        one.sets,
        data.kind,
        asked,
        frozen.folder,
        frozen.progress,
        lexicon=data.lexicon,
    )
    seen = np.unique(one.of_row[data.rows("train")])
    known = vocabulary([names[at] for at in seen], n_types)
    codes, facts = type_codes(names, known, most)
    left = ", ".join(f"{count:,} {what}" for what, count in facts.items())
    note = (
        f"{data.name}, {leakage}: {len(known)} distinct types by {asked.llm}; left out: {left}, "
        f"{told['dropped pieces']:,} pieces of answers that are no type; "
        f"{told['without types']:,} sets have none"
    )
    return codes[one.of_row], len(known), [note, *filter(None, [remark("types", told)])]


# --- profiles -----------------------------------------------------------------------------------
def is_gpt(llm: str) -> bool:
    """Whether a name is the paper's language model; a folder's name says nothing."""
    return llm.startswith("endpoint:") and llm.endswith("gpt-3.5-turbo-1106")


def is_blip2(captioner: str) -> bool:
    """The same of the captioner, of which the paper says no more than that."""
    return captioner == "blip2" or captioner.startswith("Salesforce/blip2-")


def usable_images(
    data: Reviews, parts: Sequence[str], model: str, option: str, needed: bool
) -> bool:
    """Whether a profile has an image part; raises Unavailable where it must and cannot."""
    if "image" not in parts:
        return False
    if data.has_picture.any():
        if model != "none":
            return True
        reason = f"no image part without its model: name one with {option}"
    else:
        reason = no_images(data)
    if needed or "text" not in parts:
        raise Unavailable(reason)
    return False


def baseline_profile(
    data: Reviews,
    parts: Sequence[str],
    text_encoder: str,
    image_encoder: str,
    images_needed: bool,
    frozen: Frozen,
    key: str,
) -> Profile:
    """Three dense features, and one field of all mean vectors; without parts the former alone."""
    dense, told = dense_features(data)
    notes, deviations, vectors = list(told), [], []
    pictured = usable_images(data, parts, image_encoder, "--image-encoder", images_needed)
    if "text" in parts:
        found, more = mean_reviews(data, text_encoder, frozen)
        vectors += found
        notes += more
    if pictured:
        mean, more = mean_pictures(data, image_encoder, frozen, key)
        vectors.append(mean)
        notes += more
        if image_encoder != "resnet50":
            deviations.append(f"images by {image_encoder} in place of ResNet-50")
    elif "image" in parts:
        deviations.append("no images")
        notes.append(f"{data.name}: rows with images are made without them")
    if "text" in parts and text_encoder != "minilm":
        deviations.append(f"texts by {text_encoder} in place of MiniLM-L6-v2")
    of_parts = {
        "parts": [part for part in parts if part != "image" or pictured],
        "models": {kind: frozen.fingerprints.get(kind, "") for kind in ("text", "image")},
    }
    what = {"": ["baseline", REVISION], "all": [of_parts, REVISION]}
    fields = {"all": tuple(vectors)} if vectors else {}
    return Profile(
        dense, DENSE, fields, what=what, notes=tuple(notes), deviations=tuple(deviations)
    )


def proposed_profile(
    data: Reviews,
    parts: Sequence[str],
    text_encoder: str,
    captioner: str,
    images_needed: bool,
    leakage: str,
    max_reviews: int,
    asked: Asked,
    caption_batch: int,
    n_types: int,
    most_types: int,
    frozen: Frozen,
    key: str,
) -> Profile:
    """Dense features with the price tag, types, and a field each of summaries and of captions."""
    dense, told = dense_features(data)
    notes, deviations = list(told), []
    pictured = usable_images(data, parts, captioner, "--captioner", images_needed)
    sides = ("user", "item") if "text" in parts else ("item",)
    described = {side: described_by(data, side, leakage, max_reviews) for side in sides}
    prices, more = price_features(data, described["item"], asked, frozen, leakage)
    notes += more
    types, known = None, 0
    if asked.llm == EXTRACTIVE and not data.lexicon:
        deviations.append("no types")
        notes.append(f"{data.name} has no lexicon of types: its rows have none")
    else:
        types, known, more = type_features(
            data, described["item"], asked, frozen, leakage, most_types, n_types
        )
        notes += more
    fields: dict[str, tuple[Vectors, ...]] = {}
    if "text" in parts:
        found, more = summary_vectors(data, described, asked, text_encoder, frozen, leakage)
        fields["text"] = tuple(found)
        notes += more
    if pictured:
        mean, more = mean_captions(data, captioner, text_encoder, frozen, caption_batch)
        fields["image"] = (mean,)
        notes += more
        if not is_blip2(captioner):
            deviations.append(f"captions by {captioner} in place of BLIP-2")
    elif "image" in parts:
        deviations.append("no images")
        notes.append(f"{data.name}: rows with images are made without them")
    if not is_gpt(asked.llm):
        deviations.append(f"texts of {asked.llm} in place of GPT-3.5 Turbo's")
    if fields and text_encoder != "minilm":
        deviations.append(f"texts by {text_encoder} in place of MiniLM-L6-v2")
    models = frozen.fingerprints
    asking = [models["llm"], leakage, max_reviews, asked.max_new_tokens]
    asking += [asked.sentences, asked.max_words, REVISION]
    what = {"": ["proposed", asking, n_types, most_types]}
    if "text" in fields:
        what["text"] = [asking, models["text"]]
    if "image" in fields:
        what["image"] = [models["caption"], models["text"], REVISION]
    names = (*DENSE, "price level", "price known")
    return Profile(
        np.concatenate([dense, prices], axis=1),
        names,
        fields,
        types,
        known,
        what,
        tuple(notes),
        tuple(deviations),
    )


# --- kept for the runs that follow --------------------------------------------------------------
_KEPT: OrderedDict[Any, Profile] = OrderedDict()


def remembered(key: Any, make: Callable[[], Profile], most: int = 4) -> Profile:
    """A profile that was made in this process, or a new one; the last few are kept."""
    if key not in _KEPT:
        _KEPT[key] = make()
        while len(_KEPT) > most:
            _KEPT.popitem(last=False)
    _KEPT.move_to_end(key)
    return _KEPT[key]


def first_texts(data: Reviews, count: int, least: int, most: int) -> list[tuple[str, list[str]]]:
    """The first users in file order with `least` to `most` training reviews: (id, texts)."""
    groups, texts = text_groups(data, "user")
    own = np.arange(len(groups.own_documents))
    sizes = np.bincount(groups.of_document[own], minlength=groups.n_groups)
    order = dict.fromkeys(groups.of_document[own].tolist())
    chosen = [user for user in order if least <= sizes[user] <= most][:count]
    if len(chosen) < count:
        raise RequestError(
            f"{data.name}: fewer than {count} users have {least} to {most} training reviews"
        )
    documents = groups.of_document[own]
    return [
        (data.user_ids[user], [texts[at] for at in np.flatnonzero(documents == user)])
        for user in chosen
    ]
