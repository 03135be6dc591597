"""The rows of LLM-EMF's tables: how they are run, what they share, what they never see."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import stage_header
from llm_emf_runs import OWN, Made, few_people, make
from safetensors.numpy import load_file
from test_ranking import sequences

from reprokit import cli, contenders, llm_emf, ranking
from reprokit.crossdata import CrossData, load_cross_data
from reprokit.plan import Request, plan
from reprokit.progress import Progress
from reprokit.reproduce import DONE
from reprokit.runs import Job, RequestError, Result, Run

TRAINED = [n for n, s in llm_emf.SYSTEMS.items() if hasattr(s.settings, "max_epochs")]
ONE_EPOCH = tuple(f"{name}.max_epochs=1" for name in TRAINED)
__all__ = ["few_people"]  # the fixture


# --- declarations -------------------------------------------------------------------------------
@pytest.mark.parametrize("table", llm_emf.TABLES, ids=lambda table: table.name)
def test_every_published_row_and_column_is_declared(table: Any):
    published = table.published
    assert [one.label for one in table.rows] == published.labels
    assert tuple(c.name for c in table.columns) == published.header[published.n_labels :]
    assert {one.system for one in (*table.rows, *table.sanity)} <= set(llm_emf.SYSTEMS)
    assert len({one.label for one in table.sanity}) == len(table.sanity)


def test_every_system_stands_in_a_table_and_gives_reasons_for_its_settings():
    used = {one.system for table in llm_emf.TABLES for one in (*table.rows, *table.sanity)}
    assert used == set(llm_emf.SYSTEMS)
    for system in llm_emf.SYSTEMS.values():
        assert all(item.metadata["why"] for item in dataclasses.fields(system.settings))
        for preset in system.presets:
            system.configure("food-kitchen", preset, {})  # names settings that it has
            assert system.reasons[preset]


def test_no_preset_changes_what_a_model_reads_or_predicts():
    for name, system in llm_emf.SYSTEMS.items():
        changed = {key for preset in system.presets.values() for key in preset}
        assert not changed & {"reads", "over", "rows", "max_len", "models"}, name


# --- a whole table ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def table2(tmp_path_factory: pytest.TempPathFactory, few_people: None) -> Made:
    return make(tmp_path_factory.mktemp("table2"), overrides=ONE_EPOCH)


def test_the_whole_of_table_2_is_made_and_no_row_is_another_one_renamed(table2: Made):
    assert table2.status == DONE and len(table2.runs) == 11 + 7
    assert not table2.outcome.failed and not table2.outcome.unavailable
    found = {title: table2.predictions(title) for title in table2.runs}
    for one, other in combinations(found, 2):
        mine, theirs = found[one], found[other]
        assert (mine["test/targets"] == theirs["test/targets"]).all()
        assert (mine["test/users"] == theirs["test/users"]).all()
        same = (mine["valid/counts"][:, :3] == theirs["valid/counts"][:, :3]).all()
        assert not same, f"{one} and {other} give the same ranks"


def test_a_run_keeps_what_its_metrics_can_be_recomputed_from(table2: Made):
    domain = {}
    for title in table2.runs:
        found, stored = table2.predictions(title), table2.stored(title)
        for split in ("valid", "test"):
            domain[split] = (found[f"{split}/targets"] > 40).astype(int)
            for part, letter in enumerate("ab"):
                again = ranking.rank_metrics(found[f"{split}/counts"][domain[split] == part])
                kept = {
                    name.removeprefix(f"{split}/{letter}/"): value
                    for name, value in stored["metrics"].items()
                    if name.startswith(f"{split}/{letter}/")
                }
                assert again == kept
                assert 0 <= kept["mrr"] <= 100 and kept["rows"] >= 1


def test_what_chose_a_model_is_validation_alone(table2: Made):
    for title, run in table2.runs.items():
        selection = table2.stored(title)["selection"]
        if run.system not in TRAINED:
            assert selection["split"] is None
            continue
        assert selection["split"] == "valid"
        metrics = table2.stored(title)["metrics"]
        for domain, one in selection["by domain"].items():
            assert one["metric"] == f"{domain}/mrr" and one["split"] == "valid"
            assert one["value"] == pytest.approx(metrics[f"valid/{domain}/mrr"], abs=1e-4)


def test_all_rows_rank_the_same_stored_lists(table2: Made):
    assert len(list((table2.out / "negatives").iterdir())) == 2


def test_people_without_training_rows_are_counted_where_a_row_needs_them(table2: Made):
    data = load_cross_data("demo-food-kitchen", table2.out)
    strangers = (~np.isin(data.test.users, data.train.users)).sum()
    note = f"{strangers} of {len(data.test)} test rows of demo-food-kitchen have a user without"
    noted = [title for title in table2.runs if note in " ".join(table2.stored(title)["notes"])]
    assert {table2.runs[title].system for title in noted} == {"ncf-mlp", "bprmf"}
    assert note in table2.text(".md")


def test_the_constant_row_stands_beside_the_others_at_a_fifth_of_a_percent(table2: Made):
    metrics = table2.stored("constant on demo-food-kitchen, seed 0")["metrics"]
    for part in "ab":
        assert metrics[f"test/{part}/mrr"] == pytest.approx(100 / 500.5)
        assert metrics[f"test/{part}/authors/mrr"] == 100
    assert "| Constant (ours)" in table2.text(".md")


# --- the same bytes, whatever was kept ----------------------------------------------------------
def kept_bytes(out: Path) -> dict[str, bytes]:
    found = [*out.glob("runs/*.npz"), *out.glob("demo/llm_emf/*.csv"), *out.glob("negatives/*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def test_the_same_command_gives_the_same_bytes(table2: Made, tmp_path: Path):
    again = make(tmp_path, overrides=ONE_EPOCH)
    assert kept_bytes(again.out) == kept_bytes(table2.out)
    assert again.text(".md") == table2.text(".md")
    for title in table2.runs:
        one, other = (made.stored(title) for made in (table2, again))
        assert (one["metrics"], one["selection"]) == (other["metrics"], other["selection"])


def test_a_row_ends_with_the_same_bytes_whether_its_stages_were_kept_or_not(tmp_path: Path):
    """Tri-CDR starts from three SASRecs, which an earlier start may have trained."""
    overrides = (*OWN, "tri-cdr.max_epochs=2")
    chosen: dict[str, Any] = {"rows": ("Tri-CDR",), "overrides": overrides}
    first = kept_bytes(make(tmp_path, **chosen).out)
    stages = sorted(tmp_path.glob("stages/*"))
    kinds = {path: stage_header(path)["what"]["stage"] for path in stages}
    of_tri = [path for path, kind in kinds.items() if kind == "tri-cdr"]
    assert len(of_tri) == 2 and sum(kind == "sasrec" for kind in kinds.values()) >= 3
    for removed in (of_tri, of_tri[1:], stages):
        for path in [*removed, *tmp_path.glob("runs/*")]:
            path.unlink()
        assert kept_bytes(make(tmp_path, **chosen).out) == first


# --- the test split is sealed -------------------------------------------------------------------
def with_other_test_rows(data: CrossData) -> CrossData:
    """The same data with a test split of random rows."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, data.n_items + 1, rng.integers(2, 9)).tolist() for _ in range(25)]
    users = rng.integers(0, data.n_users, 25).tolist()
    return dataclasses.replace(data, test=sequences(rows, users))


def test_training_and_choice_do_not_change_with_the_test_split(
    table2: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = ranking.load_cross_data
    monkeypatch.setattr(ranking, "load_cross_data", lambda *a: with_other_test_rows(real(*a)))
    other = make(tmp_path, overrides=ONE_EPOCH)
    assert other.status == DONE
    for title in table2.runs:
        one, two = table2.predictions(title), other.predictions(title)
        assert len(two["test/counts"]) == 25 != len(one["test/counts"])
        assert np.array_equal(one["valid/counts"], two["valid/counts"]), title
        assert table2.stored(title)["selection"] == other.stored(title)["selection"]
    names = sorted(path.name for path in table2.out.glob("stages/*"))
    assert names == sorted(path.name for path in other.out.glob("stages/*"))
    assert len(names) == 13 + 5  # Tri-CDR has two models and three that it starts from
    for name in names:
        mine, theirs = (load_file(made.out / "stages" / name) for made in (table2, other))
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
        headers = [stage_header(made.out / "stages" / name) for made in (table2, other)]
        assert headers[0]["record"] == headers[1]["record"]


# --- grids --------------------------------------------------------------------------------------
def test_a_point_of_a_grid_is_chosen_on_validation_and_stands_in_the_result(tmp_path: Path):
    grid = "lr=0.0000001,0.02;dropout=0.0,0.5"
    short = OWN[0], OWN[2]
    overrides = ("sasrec.max_epochs=2", "itemknn.grid=k=1,20;variant=sum,last", *short)
    made = make(tmp_path, rows=("SASRec", "ItemKNN"), overrides=(*overrides, f"sasrec.grid={grid}"))
    for title, tried in (
        ("sasrec (merged) on demo-food-kitchen, seed 0", 4),
        ("itemknn on demo-food-kitchen, seed 0", 4),
    ):
        stored = made.stored(title)
        selection, metrics = stored["selection"], stored["metrics"]
        assert selection["split"] == "valid" and len(selection["grid"]) == tried
        best = max(selection["grid"], key=lambda one: one["valid mrr"])
        assert selection["chosen point"] == best["point"]
        mean = np.mean([metrics[f"valid/{part}/mrr"] for part in "ab"])
        assert best["valid mrr"] == pytest.approx(mean, abs=1e-4)
    # The chosen point alone, elsewhere, gives the same ranks.
    point = made.stored("sasrec (merged) on demo-food-kitchen, seed 0")["selection"]["chosen point"]
    fixed = tuple(f"sasrec.{name}={value}" for name, value in point.items())
    alone = make(tmp_path / "alone", rows=("SASRec",), overrides=(*overrides[:1], *short, *fixed))
    title = "sasrec (merged) on demo-food-kitchen, seed 0"
    assert np.array_equal(
        made.predictions(title)["test/counts"], alone.predictions(title)["test/counts"]
    )


def test_a_grid_over_the_length_gives_mifn_the_graph_of_each_length(tmp_path: Path):
    small = ("mifn.max_epochs=1", "mifn.dim=8", "mifn.nodes=20", *OWN)
    runs = {}
    for name, more in (("grid", "mifn.grid=max_len=15,4"), ("alone", "mifn.max_len=4")):
        made = make(tmp_path / name, rows=("MIFN",), overrides=(*small, more))
        assert made.status == DONE, made.outcome
        runs[name] = made.stored("mifn on demo-food-kitchen, seed 0")
    (short,) = [
        one["valid mrr"]
        for one in runs["grid"]["selection"]["grid"]
        if one["point"] == {"max_len": 4}
    ]
    alone = np.mean([runs["alone"]["metrics"][f"valid/{part}/mrr"] for part in "ab"])
    assert short == pytest.approx(alone, abs=1e-4)


# --- settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("text", "parts must be all, or id with some of text, llm, image: text"),
        ("id,sound", "parts must be all, or id"),
        ("", "parts must be all, or id"),
        ("id,llm", "parts has llm without text"),
        ("all,id", "parts must be all, or id"),
    ],
)
def test_parts_that_make_no_model_are_refused(parts: str, message: str, tmp_path: Path):
    with pytest.raises(RequestError, match=f"settings of llm-emf on .*: {message}"):
        plan(Request(("llm_emf/figure5",), out=tmp_path, overrides=(f"llm-emf.parts={parts}",)))


@pytest.mark.parametrize(
    ("chosen", "used"),
    [
        ({}, ("id", "text", "llm", "image")),
        ({"parts": "image,id"}, ("id", "image")),
        ({"parts": "all"}, ("id", "text", "llm", "image")),
        ({"parts": "all", "image_encoder": "none"}, ("id", "text", "llm")),
        ({"parts": "all", "llm": "none"}, ("id", "text", "image")),
        ({"parts": "all", "text_encoder": "none"}, ("id", "image")),
    ],
)
def test_all_parts_are_those_with_an_encoder(chosen: dict[str, str], used: tuple[str, ...]):
    settings = llm_emf.LLMEMFSettings(**chosen)
    assert settings.used == used
    assert set(llm_emf.SYSTEMS["llm-emf"].pretrained(settings)) == set(used) - {"id"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("llm-emf.alpha=0.8 llm-emf.beta=0.3", "alpha \\+ beta must be at most 1"),
        ("llm-emf.alpha=0", "alpha is out of range"),
        ("llm-emf.temperature=0", "temperature is out of range"),
        ("llm-emf.models=3", "models is out of range"),
        ("llm-emf.max_new_tokens=0", "max_new_tokens is out of range"),
        ("llm-emf.grid=parts=id,all", "vectors are made once, before the grid is tried"),
        ("llm-emf.grid=lr=0.1;text_encoder=tiny,none", "vectors are made once"),
        ("llm-emf.grid=lr=0.1|llm=tiny", "'llm=tiny': vectors are made once"),
        ("llm-emf.grid=rate=1", "'rate=1' is not setting=value"),
        ("sasrec.heads=3", "heads must divide dim"),
        ("sasrec.reads=both", "reads must be merged or target, got 'both'"),
        ("gru4rec.layers=0", "layers is out of range"),
        ("sr-gnn.rounds=0", "rounds is out of range"),
        ("pi-net.gate_keeps=none", "gate_keeps must be old or new"),
        ("pi-net.dropout=1", "dropout is out of range"),
        ("psjnet.reduce=sum", "reduce must be max or mean"),
        ("mifn.nodes=0", "nodes is out of range"),
        ("tri-cdr.heads=5", "heads must divide dim"),
        ("tri-cdr.w_tri=-1", "w_tri is out of range"),
        ("bprmf.user=mean", "user must be id or items"),
        ("ncf-mlp.l2=0.1", "l2 is out of range"),
        ("ncf-mlp.tower=64,x", "tower must be two or more widths"),
        ("ncf-mlp.tower=63,8", "the first even"),
        ("ncf-mlp.negatives=0", "negatives is out of range"),
        ("itemknn.k=0", "k is out of range"),
        ("itemknn.shrink=-2", "shrink is out of range"),
        ("itemknn.grid=k=x", "'x', not of type int"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_runs(
    override: str, message: str, tmp_path: Path
):
    wanted = Request(("llm_emf/table2",), out=tmp_path, overrides=tuple(override.split(" ")))
    with pytest.raises(RequestError, match=message) as error:
        plan(wanted)
    assert "\n" not in str(error.value)


def test_weights_that_leave_no_room_for_the_text_train_all_the_same(tmp_path: Path):
    """1 - 0.8 - 0.2 is below 0 in floating point."""
    overrides = tuple(
        f"llm-emf.{one}" for one in ("max_epochs=1", "alpha=0.8", "beta=0.2", "parts=id,text")
    )
    made = make(tmp_path, "llm_emf/figure5", rows=("lambda1 = 0.3",), overrides=overrides)
    assert made.status == DONE, made.outcome


@pytest.mark.parametrize("models", [1, 2])
def test_settings_reach_the_model_as_the_paper_names_them(
    models: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """alpha weighs ids, beta pictures, the rest texts; each model has its domain as X."""
    chosen = {"alpha": 0.5, "beta": 0.2, "lambda1": 0.7, "lambda2": 0.6, "temperature": 0.5}
    more = {"models": models, "max_len": 9, "dropout": 0.25, "dim": 12, "learn_temperature": True}
    settings = llm_emf.SYSTEMS["llm-emf"].configure("movie-book", "demo", {**chosen, **more})
    backbone = "text t; image i; llm planted"
    run = Run("llm_emf", "llm-emf", "demo-movie-book", settings, 0, "", backbone=backbone)
    recipes: list[ranking.Recipe] = []

    def keep(job: Job, prepare: Any, arena: ranking.Arena) -> Result:
        recipes.append(prepare(arena, settings))
        return Result({})

    monkeypatch.setattr(llm_emf, "run_recipe", keep)
    llm_emf.run_llm_emf(Job(run, tmp_path, tmp_path, 20.0, Progress(quiet=True)))
    (recipe,) = recipes
    assert recipe.models == models
    for domain in range(models):
        model = recipe.build(settings, domain)
        weights = dict(zip(model.modalities, model.weights.tolist(), strict=True))
        assert weights == pytest.approx({"id": 0.5, "image": 0.2, "text": 0.3})
        assert (model.target, model.lambda1, model.lambda2) == (domain, 0.7, 0.6)
        assert model.log_temperature.exp().tolist() == pytest.approx([0.5] * 9)
        assert model.log_temperature.requires_grad and model.ids.shape == (80, 12)
        layer = model.layers["both-text"]
        assert len(layer.positions) == 9 and layer.dropout.p == 0.25


# --- the command line ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "kind"), [("--text-encoder", "text"), ("--image-encoder", "image")]
)
def test_an_encoder_that_is_not_known_ends_with_one_line_and_status_2(
    option: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wanted = ["reproduce", "llm_emf/figure5", option, "nonsense", "--out", str(tmp_path)]
    assert cli.main(wanted) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"reprokit: {kind} encoder 'nonsense' is unknown: use tiny")
    assert error.count("\n") == 1 and not list(tmp_path.glob("runs/*"))


def test_encoders_on_the_command_line_reach_llm_emf_and_no_other_row(tmp_path: Path):
    typed = {"text_encoder": "none", "image_encoder": "tiny", "llm": "none"}
    planned = plan(Request(("llm_emf/table2",), out=tmp_path, **typed))
    for run in planned.wanted:
        settings = dataclasses.asdict(run.settings)
        assert {key: settings.get(key) for key in typed} == (
            typed if run.system == "llm-emf" else dict.fromkeys(typed)
        )
    with pytest.raises(RequestError, match="--image-encoder tiny: no row of ccf_llm/table1 has an"):
        plan(Request(("ccf_llm/table1",), out=tmp_path, image_encoder="tiny"))


def test_the_published_grids_are_those_of_the_paper_preset():
    settings = llm_emf.SYSTEMS["llm-emf"].configure("food-kitchen", "paper", {})
    printed, ours = (
        [point for point, _ in ranking.points(settings, grid)] for grid in ranking.rounds(settings)
    )
    assert len(printed) == 25
    lr, l2 = (sorted({point[name] for point in printed}) for name in ("lr", "l2"))
    assert lr == [0.0001, 0.0005, 0.001, 0.005, 0.01]
    assert l2 == [0.00001, 0.00005, 0.0001, 0.0005, 0.001]
    assert all(point["alpha"] + point["beta"] < 1 for point in ours)
    assert (settings.lambda1, settings.lambda2, settings.dim) == (0.3, 0.1, 256)
    assert (settings.batch_size, settings.dropout, settings.max_epochs) == (256, 0.3, 100)


def test_the_worlds_knowledge_links_items_of_both_domains_and_no_item_to_itself():
    known = contenders.world_knowledge("demo-movie-book")
    assert set(known.edges) == {
        *("also_bought", "also_viewed", "buy_after_viewing", "bought_together"),
    }
    for kind, edges in known.edges.items():
        assert len(edges) and edges.min() >= 1 and edges.max() <= 80
        assert (edges[:, 0] != edges[:, 1]).all()
        across = (edges[:, 0] > 40) != (edges[:, 1] > 40)
        assert across.all() if kind == "buy_after_viewing" else not across.all()
        assert np.bincount(edges[:, 0]).max() <= 5
    assert set(known.item_categories[:, 0]) == set(range(1, 81))
    assert known.item_categories[:, 1].max() < len(known.categories)
