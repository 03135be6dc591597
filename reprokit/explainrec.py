"""ExplainRec: explainable multi-modal zero-shot recommendation with preference attribution.

Paper   Ma et al., arXiv 2511.14770v1.
Tables  explainrec/table1 to table4, figure2, figure3, human; of our own explainrec/full-ranking,
        random-split, cross-domain and explanations.

A row is a rating; whether it is a liking is predicted, and a liked item is ranked among unrated
ones. Data and splits stand in `feedback` and `ratings`, the protocol in `recommending`, the model
and its equations in `explainer`, its prompts in `instructions`, its reasons in `reasons`, its
knowledge base in `patterns`, its two stages in `tuning` and `explaining`; the baselines in `tastes`
(with `rankers` and `multimodal`), `p5`, `chatrec`, `narre`, `a3ncf`; Table IV in `efficiency`, the
human study in `human`. Importing this module loads no torch.

What the paper leaves open or gets wrong, and what is done here
D1  Labels, splits, negatives and candidates are not stated: a rating of 4 or more is liked (Amazon:
    above 3), each user's ratings are split 80/10/10 by time, AUC is over rated pairs, NDCG@10 over
    one liked and 99 unrated items, with a full ranking and a random split beside it.
D2  BLEU has no gradient: L_reason is the cross-entropy of a reference reason, BLEU-4 is reported.
D3  No data set has reasons: the user's own review where there is one, else a template over what the
    item shares with what he liked.
D4  L_consistency is not given: the divergence between the answer and the answer read once more
    behind the reason, where its token is hidden. In training that is the reference reason: to
    write one for every row and step would take many times as long.
D5  Equation 11 as printed takes weight from the task with the largest loss, until the easiest has
    all of it. The sign is turned here, losses count relative to those of the first steps, and
    weights are bounded; `direction` = printed has the printed rule.
D6  MovieLens-25M has no demographics: groups by activity and favourite genres.
D7  MovieLens and Amazon Books share no user: trained on one, tested on the other, whose users come
    with four ratings each. `explainrec/cross-domain` has pseudo-users beside it.
D8  How the knowledge base and the fused items enter is not said: patterns are added to the answer's
    log-odds, each item has a slot behind its title.
D9  The text calls attribution the largest gain; in Table II leaving out the images and texts costs
    more AUC (0.004 to 0.003). Content-Based beats ExplainRec in Table III by 0.087, 0.074 and
    0.059, which the text does not discuss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reprokit import a3ncf, chatrec, narre, p5, reasons, recommending, tastes
from reprokit.data import Source
from reprokit.efficiency import efficiency
from reprokit.explaining import ExplainRecSettings, run_explainrec
from reprokit.human import FOLDER, HUMAN, HUMAN_DATA
from reprokit.ratings import FEEDBACK_DATA
from reprokit.recommending import SAMPLES
from reprokit.runs import Estimate, System
from reprokit.tables import Column, Row, Table
from reprokit.tuning import REVISION, TALLRecSettings, run_tallrec

DATASETS: Mapping[str, Source] = {**FEEDBACK_DATA, **HUMAN_DATA}


# --- estimates: upper bounds on two CPU cores, from runs on one such machine --------------------
TOKENS = 220
"""Of a prompt with reasons, about."""


def estimate_tuned(s: Any, sizes: Mapping[str, int]) -> Estimate:
    """Every epoch used, each row with its prompt; then what is scored and explained."""
    from reprokit.sizes import size_of

    size = size_of(s.llm)
    rate = 2.5e10  # floating-point operations a second
    held = sizes["train"] // 8
    rows = min(s.shots or s.train_rows, sizes["train"])
    lists = (s.negatives + 1) * (s.rank_rows or held)
    scored = (s.rated_rows or held) + lists + s.max_epochs * (s.valid_rows or held)
    tokens = TOKENS * (3 * s.max_epochs * min(rows, s.epoch_rows) + scored)
    questions = {"alpaca": 52_002, "catalogue": min(40_000, 2 * sizes["items"]), "none": 0}
    tokens += 3 * 60 * s.stage1_epochs * questions[s.stage1]
    if hasattr(s, "support"):  # a step for each new user or item, on cold and cross-domain sets
        tokens += 3 * TOKENS * s.support * min(sizes["users"], s.rated_rows or sizes["users"])
    tokens += 40 * s.explain_tokens * s.explain_rows
    memory = size.memory(s.micro_batch or s.batch_size, s.max_tokens, 4, training=True)
    seconds = 30 + tokens * 2 * size.parameters / rate
    memory += 1.5e9 + 120.0 * sizes["train"] + 4 * size.parameters  # with the ratings
    disk = 4e7 + 0.02 * size.parameters
    return Estimate(seconds, memory, disk, tastes.encoding(s, sizes))


# --- systems ------------------------------------------------------------------------------------
REASONS = {
    "demo": "small, for a laptop",
    "small": "a small open model, for hours on a CPU or minutes on a GPU",
    "own": "a small model of our own takes larger steps, few of them, and changes in all layers",
}
OWN_LAYERS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
OWN: dict[str, Any] = {
    "lr": 5e-3,
    "stage1_lr": 5e-3,
    "lora_r": 16,
    "lora_dropout": 0.0,
    "lora_targets": OWN_LAYERS,
    "batch_size": 8,
    "micro_batch": 0,
    "eval_batch": 256,
    "warmup": 10,
}
DEMO = {
    **SAMPLES["demo"],
    "llm": "tiny",
    "stage1": "catalogue",
    "stage1_epochs": 1,
    "history": 2,
    "train_rows": 3000,
    "epoch_rows": 800,
    "min_epochs": 3,
    "max_epochs": 3,
    "explain_rows": 60,
    "explain_tokens": 16,
}
SMALL = {
    **SAMPLES["small"],
    "llm": "HuggingFaceTB/SmolLM2-135M",
    "stage1": "catalogue",
    "stage1_epochs": 1,
    "lr": 1e-3,
    "stage1_lr": 1e-3,
    "batch_size": 32,
    "history": 4,
    "train_rows": 20_000,
    "epoch_rows": 2000,
    "min_epochs": 3,
    "max_epochs": 3,
    "eval_batch": 128,
}


def tuned(settings: type, execute: Any, **more: Mapping[str, Any]) -> System:
    """A row with a tuned language model; `more` adds to the presets."""
    reads = settings is ExplainRecSettings
    # Reasons weigh more: a small model learns them last, and with less some seeds wrote none.
    own = {**OWN, "fusion_lr": 1e-2, "lr": 2e-3, "beta": 3.0} if reads else OWN
    return System(
        settings,
        execute,
        estimate_tuned,
        presets={
            "demo": {**DEMO, **more.get("demo", {})},
            "small": {**SMALL, **more.get("small", {})},
        },
        reasons=REASONS,
        revision=REVISION,
        backbone="llm",
        encoders={"text": "text_encoder", "image": "image_encoder"} if reads else {},
        reads=(lambda s: s.reads) if reads else None,
        by_backbone={"tiny": own, "scratch": own},
    )


def of_protocol(system: System) -> System:
    """A system whose runs are other ones whenever the protocol or the reference reasons are."""
    protocol = 100 * recommending.REVISION + reasons.REVISION
    return replace(system, revision=1000 * protocol + system.revision)


OWN_SYSTEMS: Mapping[str, System] = {
    **tastes.SYSTEMS,
    "narre": narre.SYSTEM,
    "a3ncf": a3ncf.SYSTEM,
    "p5": p5.SYSTEM,
    "chatrec": chatrec.CHATREC,
    "tallrec": tuned(
        TALLRecSettings,
        run_tallrec,
        demo={"loss": "answer"},
        small={"loss": "answer"},
    ),
    "explainrec": tuned(
        ExplainRecSettings,
        run_explainrec,
        demo={"text_encoder": "tiny", "image_encoder": "tiny", "dim": 16},
        small={"text_encoder": "minilm", "image_encoder": "tiny", "fusion_lr": 3e-3},
    ),
}
SYSTEMS: Mapping[str, System] = {
    **{name: of_protocol(system) for name, system in OWN_SYSTEMS.items()},
    "efficiency": efficiency("reprokit.explainrec"),
    "human": HUMAN,
}

# --- tables -------------------------------------------------------------------------------------
FILMS, AMAZON = "ml-25m", "amazon-movies-2014"
COLD, CROSS, PSEUDO = f"{FILMS}-cold", f"{FILMS}-cross", f"{FILMS}-pseudo"
RANDOM = f"{FILMS}-random"
OTHERS = ("ml-latest-small", "ml-1m")
DATA = (
    "Data",
    "each user's ratings by time, 80/10/10; liked from 4 stars on (Amazon: above 3). A history "
    "holds training events alone, for test rows those of validation too, never a test event.",
)
PAIRS = "AUC over rated test pairs, where dislikes are the negatives"
LISTS = "NDCG@10 of a liked item among 99 that its user has rated in no split, drawn once and kept"
SAMPLED = "of a fixed random sample, the same for all systems"
CHOICE = (
    "Model choice",
    "by validation AUC; systems trained on a ranking loss by validation NDCG@10 where there "
    "are lists. The test split is opened once, after the choice.",
)
PROTOCOL = (DATA, ("Scoring", f"{PAIRS}; {LISTS}. Both are {SAMPLED}."), CHOICE)
WITH_CHATREC = (
    DATA,
    (
        "Scoring",
        f"{PAIRS}; {LISTS}. Both are {SAMPLED} but Chat-REC. That is asked about a fixed random "
        "choice of users: its NDCG@10 is of their lists, its AUC of all their rated test pairs, "
        "ranked in prompts filled up with unrated items.",
    ),
    CHOICE,
)
WITHOUT_LISTS = (DATA, ("Scoring", f"{PAIRS}, {SAMPLED}."), CHOICE)
EXPLAINED = (
    "BLEU",
    "BLEU-4 of sacrebleu from 0 to 1, of generated reasons of a fixed random sample of test pairs "
    "against reference reasons. A system explains the answer that it gives itself.",
)
EXAMPLES = (
    "Examples",
    "the first of the test pairs that are explained for BLEU. Score: log-odds of a liking; above 0 "
    "the answer is yes, and that answer is explained. Reference: of the user's own rating. Rests "
    "on: attributes of the item that the explanation names, and items of the user's history that "
    "have one of them.",
)
POINTS = (
    "No hyper-parameter is printed: see the settings.",
    "Labels, negatives, candidates and the kind of split are not stated.",
    "BLEU cannot be a loss: L_reason is the cross-entropy of a reference reason. References are "
    "the sentence of the user's own review that names most of the item's attributes, else a "
    "template over what it shares with what he liked; the notes count both. No prompt holds text "
    "of a test review.",
    "L_consistency: divergence between the answer and the answer read behind the reason, in "
    "training the reference reason.",
    "Equation 11 as printed drains the task with the largest loss; its sign is turned, and no "
    "weight leaves a factor of four.",
    "MovieLens-25M has no demographics: groups by activity and favourite genres. MovieLens-1M and "
    "the demo have gender and age.",
)
COLD_POINTS = (
    "A tenth of the users are new to the test and a tenth to validation: they keep at most four "
    "training events, drawn from zero to four, and the rest of theirs is held out. A tenth of the "
    "items are new: they keep as few training events, their others are left out. Held-out rows of "
    "neither kind, and those of new users on new items, are left out; "
    "`data` in each run's file says how many.",
    "MovieLens and Amazon Books share no user: trained on films, tested on books, whose users come "
    "with four ratings of their own to be read and not to be trained on.",
    "Equation 6 moves the parts beside the language model, by one step on at most five events; its "
    "step size is chosen on validation rows, and none may be best.",
    "Content-Based is cited to a survey: cosine with the mean of liked items' texts less that of "
    "disliked ones. In print it beats ExplainRec in all three columns, which the text does not "
    "discuss.",
)
METHODS = {
    "LightGCN": "lightgcn",
    "SASRec": "sasrec",
    "MMGCN": "mmgcn",
    "LATTICE": "lattice",
    "TALLRec": "tallrec",
    "Chat-REC": "chatrec",
    "P5": "p5",
    "ExplainRec": "explainrec",
}
MORE = {
    "GRU4Rec": "gru4rec",
    "VBPR": "vbpr",
    "NARRE": "narre",
    "A3NCF": "a3ncf",
    "Content-Based": "content-based",
    "Popularity": "popularity",
    "Random": "random",
}
CHEAP = ("popularity", "random")
VARIANTS = {
    "ExplainRec (Full)": "",
    "w/o Preference Attribution": "attribution",
    "w/o Zero-shot Transfer": "zero-shot",
    "w/o Multi-modal": "multi-modal",
    "w/o Multi-task": "multi-task",
}
MAIN = tuple(
    Column(f"{name} {metric}", f"test/{key}", dataset, definition=definition)
    for name, dataset in (("MovieLens-25M", FILMS), ("Amazon Movies", AMAZON))
    for metric, key, definition in (("AUC", "auc", "auc"), ("NDCG@10", "ndcg@10", "ndcg@k"))
)
ABLATED = (
    Column("AUC", "test/auc", FILMS, definition="auc"),
    Column("NDCG@10", "test/ndcg@10", FILMS, definition="ndcg@k"),
    Column("BLEU", "test/bleu", FILMS, tolerance=0.02, definition="bleu"),
)
COLD_COLUMNS = (
    Column("New Users AUC", "test/new_users/auc", COLD, definition="auc"),
    Column("New Items AUC", "test/new_items/auc", COLD, definition="auc"),
    Column("Cross-Domain AUC", "test/cross/auc", CROSS, definition="auc"),
)
COLD_ROWS = (
    Row("LightGCN", "lightgcn"),
    Row("TALLRec", "tallrec"),
    Row("Content-Based", "content-based"),
    Row("ExplainRec", "explainrec"),
)
OWN_COLD = (
    Row(
        "ExplainRec w/o Zero-shot Transfer",
        "explainrec",
        {"without": "zero-shot"},
        columns=("New Users AUC", "New Items AUC"),
    ),
    Row("MMGCN", "mmgcn", on_request=True),
    Row("LATTICE", "lattice", on_request=True),
    Row("Popularity", "popularity"),
)


def rows(methods: Mapping[str, str]) -> tuple[Row, ...]:
    return tuple(Row(label, system) for label, system in methods.items())


def variants() -> tuple[Row, ...]:
    return tuple(
        Row(label, "explainrec", {"without": without}) for label, without in VARIANTS.items()
    )


def figure3() -> tuple[Row, ...]:
    left, right = ("AUC", "BLEU"), tuple(column.name for column in COLD_COLUMNS)
    return tuple(
        [Row(r.label, r.system, r.settings, columns=left) for r in variants()]
        + [Row(r.label, r.system, r.settings, columns=right) for r in COLD_ROWS]
    )


SHARED: dict[str, Any] = {"home": FILMS, "others": OTHERS, "demo_seeds": 1}
TABLES = (
    Table(
        "explainrec/table1",
        "Performance on MovieLens-25M and Amazon Movies",
        columns=MAIN,
        rows=rows(METHODS),
        sanity=(
            *(replace(row, on_request=row.system not in CHEAP) for row in rows(MORE)),
            Row("TALLRec, 64 shots", "tallrec", {"shots": 64}),
        ),
        protocol=WITH_CHATREC,
        open_points=POINTS,
        **SHARED,
    ),
    Table(
        "explainrec/table2",
        "Ablation study on MovieLens-25M",
        columns=ABLATED,
        rows=variants(),
        protocol=(*PROTOCOL, EXPLAINED),
        open_points=(
            *POINTS,
            "The text calls attribution the largest gain; in print leaving out images and texts "
            "costs more AUC, 0.004 to 0.003.",
        ),
        **SHARED,
    ),
    Table(
        "explainrec/table3",
        "Cold start: new users, new items, cross-domain",
        columns=COLD_COLUMNS,
        rows=COLD_ROWS,
        sanity=OWN_COLD,
        protocol=WITHOUT_LISTS,
        open_points=COLD_POINTS,
        **SHARED,
    ),
    Table(
        "explainrec/table4",
        "Efficiency: training time, latency, memory",
        columns=(
            Column("Training Time (hours)", "train_hours", FILMS, least=5),
            Column("Inference (ms)", "latency_ms", FILMS, least=2),
            Column("Memory (GB)", "memory_gb", FILMS, least=2),
        ),
        rows=tuple(
            Row(label, "efficiency", {"of": system})
            for label, system in METHODS.items()
            if system in ("tallrec", "mmgcn", "lattice", "explainrec")
        ),
        seeds=1,
        protocol=(
            (
                "Measured",
                "each row is made anew in a process of its own on this machine, which the notes "
                "name. Training: from the first optimiser step to the end of the last stage, "
                "validation included, frozen features not. Inference: median of single test pairs, "
                "one after the other, prompt and all. Memory: the process's peak.",
            ),
        ),
        open_points=(
            "The paper names no machine, batch size or number of epochs, and does not say what an "
            "inference is: one pair here.",
        ),
        **SHARED,
    ),
    Table(
        "explainrec/figure2",
        "Performance comparison",
        columns=MAIN,
        rows=rows(METHODS),
        label_header="Method",
        protocol=WITH_CHATREC,
        **SHARED,
    ),
    Table(
        "explainrec/figure3",
        "Ablation study, and cold start",
        columns=(ABLATED[0], ABLATED[2], *COLD_COLUMNS),
        rows=figure3(),
        label_header="Variant or method",
        protocol=(*WITHOUT_LISTS, EXPLAINED),
        open_points=COLD_POINTS,
        **SHARED,
    ),
    Table(
        "explainrec/human",
        "Human study: usefulness, accuracy, clarity on a 5-point scale",
        columns=tuple(
            Column(name, f"{{part}}/{system}", FOLDER, tolerance=0.2, least=2)
            for name, system in (
                ("ExplainRec", "explainrec"),
                ("TALLRec", "tallrec"),
                ("NARRE", "narre"),
            )
        ),
        rows=tuple(
            Row(name, "human", part=name.lower()) for name in ("Usefulness", "Accuracy", "Clarity")
        ),
        seeds=1,
        protocol=(
            (
                "Ratings",
                "of people alone. `human export` writes blinded sheets, `human analyse` reads what "
                "comes back; sheets in human-study/returned of the data directory fill this table.",
            ),
        ),
        open_points=(
            "Which explanations of which data set the 100 users saw is not said, nor whether they "
            "knew the systems, nor how far the ratings spread.",
        ),
    ),
    Table(
        "explainrec/full-ranking",
        "Table I against all items: a liked item among all that its user has not rated",
        columns=tuple(
            Column(f"{name} {metric}", f"test/full/{key}", dataset, definition=definition)
            for name, dataset in (("MovieLens-25M", FILMS), ("Amazon Movies", AMAZON))
            for metric, key, definition in (
                ("NDCG@10", "ndcg@10", "ndcg@k"),
                ("HR@10", "hr@10", "hr@k"),
            )
        ),
        rows=rows(
            {
                label: system
                for label, system in {**METHODS, **MORE}.items()
                if system not in ("tallrec", "chatrec", "p5", "explainrec", "narre", "a3ncf")
            }
        ),
        label_header="Method",
        ours=True,
        protocol=(
            DATA,
            (
                "Scoring",
                "the rank of a liked test item among all items that its user has rated in no "
                f"split; liked items are {SAMPLED}.",
            ),
            CHOICE,
        ),
        open_points=("Systems that read a prompt or reviews for each pair are left out.",),
        **SHARED,
    ),
    Table(
        "explainrec/random-split",
        "Table I on MovieLens with each user's ratings split at random",
        columns=(
            Column("AUC", "test/auc", RANDOM, definition="auc"),
            Column("NDCG@10", "test/ndcg@10", RANDOM, definition="ndcg@k"),
        ),
        rows=rows(
            {name: METHODS[name] for name in ("LightGCN", "LATTICE", "TALLRec", "ExplainRec")}
        ),
        label_header="Method",
        ours=True,
        protocol=((DATA[0], DATA[1].replace("by time", "at random")), *PROTOCOL[1:]),
        open_points=(
            "The paper says 80/10/10 and no more. At random, a test rating may be older than what "
            "is learnt from.",
        ),
        **SHARED,
    ),
    Table(
        "explainrec/cross-domain",
        "Cross-domain AUC with users of the other domain as they are, and as pseudo-users",
        columns=(
            Column("Zero-shot AUC", "test/cross/auc", CROSS, definition="auc"),
            Column("Pseudo-users AUC", "test/cross/auc", PSEUDO, definition="auc"),
        ),
        rows=COLD_ROWS,
        label_header="Method",
        ours=True,
        protocol=WITHOUT_LISTS,
        open_points=(
            "Pseudo-users are synthetic: before his own four ratings each user of the other domain "
            "gets the history of the film user with the nearest genre profile.",
        ),
        **SHARED,
    ),
    Table(
        "explainrec/explanations",
        "Explanations of ExplainRec: what it says, and what that rests on",
        columns=tuple(
            Column(name, f"example/{{part}}/{key}", FILMS)
            for name, key in (
                ("Item", "item"),
                ("Score", "score"),
                ("Explanation", "text"),
                ("Reference", "reference"),
                ("Rests on", "evidence"),
            )
        ),
        rows=tuple(Row(f"Example {n}", "explainrec", part=str(n)) for n in range(1, 7)),
        label_header="Example",
        ours=True,
        draw="",
        protocol=(DATA, EXAMPLES, EXPLAINED),
        seeds=1,
        home=FILMS,
        others=OTHERS,
    ),
)
