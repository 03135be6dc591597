"""The rows of CCF-LLM: how they are run, what they share, what they never see."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click_runs import SHORT, execute, few, job_of, shortened
from conftest import DATA, needs
from sklearn.metrics import roc_auc_score

from reprokit import bench, ccf_llm, click, data, inspection
from reprokit.ccf_llm import SYSTEMS
from reprokit.click import click_metrics
from reprokit.data import load_click_data
from reprokit.progress import Progress
from reprokit.runs import Job, RequestError, Run, Store, Unavailable

__all__ = ["few"]  # the fixture


@pytest.mark.parametrize("system", ["mf", "lightgcn", "sasrec"])
def test_each_model_beats_chance_on_the_planted_data(system: str, tmp_path: Path):
    """Chance is 0.50 with a standard error of about 0.015 on these test rows."""
    result = execute(system, "demo-ml-1m", tmp_path, tmp_path)
    assert result.metrics["test/auc"] > 0.6
    assert result.selection["split"] == "valid"
    assert result.selection["value"] == pytest.approx(result.metrics["valid/auc"], abs=1e-6)


def shuffle_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation labels, and the histories made of them, in random order."""
    real = data.ctr_split

    def shuffled(name: str, events: data.Events, part: np.ndarray, *rest: Any) -> data.CTRData:
        rng = np.random.default_rng(0)
        ratings = events.ratings.copy()
        for index in (0, 1):
            ratings[part == index] = rng.permutation(ratings[part == index])
        return real(name, dataclasses.replace(events, ratings=ratings), part, *rest)

    monkeypatch.setattr(data, "ctr_split", shuffled)


@pytest.mark.parametrize("system", ["mf", "lightgcn", "sasrec", "bias-only", "like-rate"])
def test_shuffled_labels_give_chance(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Test labels are true. Chance is 0.50 with a standard error of 0.015 on these rows."""
    shuffle_labels(monkeypatch)
    data.load_click_data.cache_clear()
    result = execute(system, "demo-ml-1m", tmp_path, tmp_path)
    data.load_click_data.cache_clear()
    assert result.metrics["test/auc"] == pytest.approx(0.5, abs=0.05)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
@pytest.mark.parametrize("system", ["mf", "lightgcn", "bias-only", "like-rate"])
def test_shuffled_labels_give_chance_on_movielens_1m(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shuffle_labels(monkeypatch)
    data.load_click_data.cache_clear()
    short = {"patience": 5} if system in ("mf", "lightgcn") else {}
    result = execute(system, "ml-1m", DATA, tmp_path, **short)
    data.load_click_data.cache_clear()
    assert result.metrics["test/auc"] == pytest.approx(0.5, abs=0.025)


def test_every_metric_can_be_recomputed_from_the_stored_predictions(tmp_path: Path):
    result = execute("like-rate", "demo-ml-1m", tmp_path, tmp_path)
    settings = SYSTEMS["like-rate"].settings()
    store, run = Store(tmp_path), Run("ccf_llm", "like-rate", "demo-ml-1m", settings, 0, "")
    store.save(run, result, {"seconds": 0.0})
    stored, kept = store.load(run), store.predictions(run)
    assert stored is not None
    assert click_metrics(kept) == stored["metrics"]
    labels, scores, warm = (kept[f"test/{name}"] for name in ("labels", "scores", "warm"))
    metrics = stored["metrics"]
    assert metrics["test/auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["test/auc_cold"] == pytest.approx(roc_auc_score(labels[~warm], scores[~warm]))
    assert metrics["test/rows_warm"] + metrics["test/rows_cold"] == len(labels)
    loaded = load_click_data("demo-ml-1m", tmp_path)
    np.testing.assert_array_equal(kept["test/items"], loaded.item_ids[loaded.test.items])


def test_a_group_of_rows_with_one_class_has_no_auc():
    predictions = {}
    for split in ("valid", "test"):
        predictions |= {
            f"{split}/users": np.array([1, 1, 2]),
            f"{split}/labels": np.array([0, 1, 1]),
            f"{split}/warm": np.array([True, True, False]),
            f"{split}/scores": np.array([0.1, 0.2, 0.3]),
        }
    metrics = click_metrics(predictions)
    assert metrics["test/auc_warm"] == 1.0
    assert "test/auc_cold" not in metrics and "test/uauc_cold" not in metrics


def test_sanity_rows_use_training_labels_alone(tmp_path: Path):
    """The like-rate by hand, for one item."""
    loaded = load_click_data("demo-ml-1m", tmp_path)
    result = execute("like-rate", "demo-ml-1m", tmp_path, tmp_path)
    item = int(loaded.test.items[0])
    rated = loaded.train.labels[loaded.train.items == item]
    expected = (rated.sum() + 5 * loaded.train.labels.mean()) / (len(rated) + 5)
    assert result.predictions["test/scores"][0] == pytest.approx(expected)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
@pytest.mark.parametrize(("system", "expected"), [("like-rate", 0.709), ("bias-only", 0.736)])
def test_sanity_rows_on_movielens_1m_equal_an_independent_count(
    system: str, expected: float, tmp_path: Path
):
    result = execute(system, "ml-1m", DATA, tmp_path)
    assert result.metrics["test/auc"] == pytest.approx(expected, abs=0.003)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
def test_lightgcn_on_movielens_1m_lands_near_the_published_auc(tmp_path: Path):
    """Print 0.5959; five seeds of an independent implementation span 0.582 to 0.609."""
    result = execute("lightgcn", "ml-1m", DATA, tmp_path, patience=10)
    assert result.metrics["test/auc"] == pytest.approx(0.5959, abs=0.02)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
def test_mf_on_movielens_1m_lands_near_the_published_auc(tmp_path: Path):
    """Print 0.6482; five seeds of an independent implementation span 0.641 to 0.656."""
    result = execute("mf", "ml-1m", DATA, tmp_path)
    assert result.metrics["test/auc"] == pytest.approx(0.6482, abs=0.02)


def test_settings_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="dim is out of range, got 0"):
        click.CFSettings(dim=0)


def test_every_setting_has_a_reason():
    for name, system in SYSTEMS.items():
        for item in dataclasses.fields(system.settings):
            assert item.metadata["why"], f"{name}.{item.name}"
        for preset in ("demo", "small", "paper"):
            for dataset in ("ml-1m", "amazon-book"):
                system.configure(dataset, preset, {})


@pytest.mark.parametrize(
    ("system", "wrong"),
    [
        *(("tallrec", {name: -1}) for name in ("micro_batch", "warmup", "valid_rows")),
        *(("tallrec", {name: -0.1}) for name in ("weight_decay", "lr_floor", "clip")),
        *(("collm", {name: 0}) for name in ("lr", "fusion_lr", "factor")),
        ("prompt", {"similar": 0}),
        ("tallrec", {"schedule": "linear"}),
        ("tallrec", {"dtype": "half"}),
        ("tallrec", {"attention": "flash"}),
        ("ccf-llm", {"cf": "mf+mf"}),
        ("ccf-llm", {"cf": "mf+"}),
        ("ccf-llm", {"cf": "mf+lightgcn+sasrec"}),
    ],
    ids=str,
)
def test_settings_of_rows_with_a_language_model_refuse_what_cannot_be_in_one_line(
    system: str, wrong: dict[str, Any]
):
    ((name, value),) = wrong.items()
    with pytest.raises(
        ValueError, match=rf"^{name} (is out of range, got {value}|must be one .*)$"
    ):
        SYSTEMS[system].configure("ml-1m", "paper", wrong)


STEPS = ("lr", "fusion_lr", "batch_size", "micro_batch", "max_tokens", "clip")


@pytest.mark.parametrize(
    ("system", "dataset", "preset", "wanted"),
    [
        ("tallrec", "ml-1m", "paper", (1e-3, None, 32, 4, 1024, 0)),
        ("softprompt", "ml-1m", "paper", (1e-4, None, 32, 4, 1024, 0)),
        ("collm", "ml-1m", "paper", (1e-3, 1e-3, 32, 4, 1024, 0)),
        ("ccf-llm", "ml-1m", "paper", (1e-4, 1e-4, 12, 3, 700, 1)),
        ("prompt", "ml-1m", "paper", (1e-4, None, 12, 3, 700, 1)),
        ("tallrec", "amazon-book", "paper", (1e-4, None, 16, 4, 1024, 0)),
        ("softprompt", "amazon-book", "paper", (1e-2, None, 16, 4, 1024, 0)),
        ("collm", "amazon-book", "paper", (1e-4, 1e-4, 16, 4, 1024, 0)),
        ("ccf-llm", "amazon-book", "paper", (1e-4, 1e-4, 12, 3, 700, 1)),
        ("tallrec", "ml-1m", "small", (1e-3, None, 32, 0, 700, 1)),
        ("softprompt", "ml-1m", "small", (1e-3, None, 32, 0, 700, 1)),
        ("collm", "amazon-book", "small", (1e-3, 3e-3, 32, 0, 700, 1)),
        ("tallrec", "ml-1m", "demo", (5e-3, None, 64, 0, 700, 1)),
        ("softprompt", "amazon-book", "demo", (5e-3, None, 64, 0, 700, 1)),
        ("collm", "ml-1m", "demo", (5e-3, 5e-3, 64, 0, 700, 1)),
    ],
)
def test_rows_copied_from_collm_take_its_steps_on_each_data_set_and_other_presets_their_own(
    system: str, dataset: str, preset: str, wanted: tuple[Any, ...]
):
    settings = SYSTEMS[system].configure(dataset, preset, {})
    assert tuple(getattr(settings, name, None) for name in STEPS) == wanted


@pytest.mark.parametrize(
    ("name", "stands_in"),
    [
        ("lmsys/vicuna-7b-v1.3", False),
        ("lmsys/vicuna-7b-v1.3@0123abc", False),
        ("/models/vicuna-7b-v1.3", False),
        ("./Vicuna-7B/", False),
        ("lmsys/vicuna-7b-v1.5", True),
        ("/models/vicuna-7b-v1.5-16k", True),
        ("lmsys/vicuna-13b-v1.3", True),
    ],
)
def test_a_vicuna_7b_made_from_llama_1_is_no_deviation_wherever_it_lies(name: str, stands_in: bool):
    one: Any = object.__new__(bench.Bench)
    one.settings = SYSTEMS["tallrec"].configure("ml-1m", "paper", {"llm": name})
    assert one.deviations == ((f"{name} in place of Vicuna-7B",) if stands_in else ())


def test_texts_under_the_tables_hold_in_every_preset():
    settings = [SYSTEMS["ccf-llm"].configure("ml-1m", name, {}) for name in ("demo", "paper")]
    assert all(getattr(settings[0], n) == 0 < getattr(settings[1], n) for n in ("cf_dim", "warmup"))
    assert settings[0].history < settings[1].history == 10
    said = " ".join(
        text
        for table in ccf_llm.TABLES
        for text in (*(text for _, text in table.protocol), *table.open_points)
    )
    for claim in ("ten most recent", "have width 128", "chosen sizes", "have CoLLM's widths"):
        assert claim not in said
    assert "by mistake; ours is" not in said


# --- rows with a language model -----------------------------------------------------------------
LLM_ROWS = [
    ("tallrec", {}),
    ("softprompt", {"train_lora": True}),
    ("softprompt", {"train_lora": False}),
    ("collm", {"cf": "mf"}),
    ("collm", {"cf": "sasrec"}),
    ("ccf-llm", {"cf": "mf"}),
    ("ccf-llm", {"cf": "sasrec", "train_encoder": False}),
    ("ccf-llm", {"cf": "lightgcn", "gate": "one"}),
    ("ccf-llm", {"cf": "lightgcn", "gate": "scalar"}),
    ("ccf-llm", {"cf": "lightgcn", "gate": "none"}),
    ("ccf-llm", {"cf": "mf+sasrec"}),
    ("ccf-llm", {"cf": "mf", "stages": "joint"}),
    ("ccf-llm", {"cf": "mf", "stages": "first"}),
    ("ccf-llm", {"cf": "mf", "stage1_prompt": "plain"}),
    ("prompt", {"tuned": False, "with_cf": False}),
    ("prompt", {"tuned": False, "with_cf": True}),
    ("prompt", {"tuned": True, "with_cf": True}),
]


@pytest.mark.parametrize(("system", "chosen"), LLM_ROWS, ids=lambda value: str(value))
def test_every_row_with_a_language_model_runs_and_says_what_stood_in(
    system: str, chosen: dict[str, Any], tmp_path: Path, few: Any
):
    result = execute(system, "demo-ml-1m", tmp_path, tmp_path, **SHORT, **chosen)
    scores = result.predictions["test/scores"]
    assert len(scores) == 120 and np.isfinite(scores).all() and scores.std() > 0
    assert 0 <= result.metrics["test/auc"] <= 1
    assert result.deviations == ("a tiny random Llama in place of Vicuna-7B",)
    zero_shot = system == "prompt" and not chosen["tuned"]
    assert result.selection["split"] == (None if zero_shot else "valid")


def bench_of(system: str, tmp_path: Path, *templates: Any, **chosen: Any) -> bench.Bench:
    job = job_of(system, "demo-ml-1m", tmp_path, tmp_path, **SHORT, **chosen)
    return bench.Bench(job, *templates)


def test_stages_of_another_precision_are_other_stages(tmp_path: Path, few: Any):
    """ "auto" is bfloat16 on one machine and float32 on another."""
    kinds = ("auto", "float32", "bfloat16")
    readings = [bench_of("tallrec", tmp_path, dtype=kind).reading for kind in kinds]
    assert readings[0] == readings[1] != readings[2]
    assert readings[0]["dtype"] == "torch.float32"


def test_the_clip_of_the_settings_is_that_of_the_training(
    tmp_path: Path, few: Any, monkeypatch: pytest.MonkeyPatch
):
    from reprokit import stages

    clips: list[float] = []

    def noted(*given: Any, **_: Any) -> Any:
        clips.append(given[8].clip)
        raise Unavailable("that was all")

    monkeypatch.setattr(stages, "stage", noted)
    for clip in (0.0, 0.25):
        with pytest.raises(Unavailable, match="that was all"):
            execute("tallrec", "demo-ml-1m", tmp_path, tmp_path, **SHORT, clip=clip)
    assert clips == [0.0, 0.25]


def test_a_title_too_long_for_the_limit_is_named_before_anything_is_trained(
    tmp_path: Path, few: Any, monkeypatch: pytest.MonkeyPatch
):
    titles = list(few.titles)
    titles[few.test.items[0]] = "A Very Long Night " * 100
    changed = dataclasses.replace(few, titles=titles)
    monkeypatch.setattr(click, "load_click_data", lambda *_: changed)
    with pytest.raises(RequestError, match=r"'A Very Long Night A .* limit of 200: raise max_tok"):
        execute("collm", "demo-ml-1m", tmp_path, tmp_path, **SHORT, cf="mf", max_tokens=200)
    assert not (tmp_path / "stages").exists()


def test_an_untrained_model_is_scored_in_the_precision_of_the_launch(
    tmp_path: Path, few: Any, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from accelerate.state import AcceleratorState

    from reprokit.prompting import TextModel
    from reprokit.prompts import PLAIN

    seen = []

    class Watched(TextModel):
        def score(self, **inputs: Any) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().score(**inputs)

    for precision in ("bf16", "no"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        AcceleratorState._reset_state()
        try:
            one = bench_of("prompt", tmp_path, PLAIN)
            model = Watched(one.llm, one.answers(PLAIN))
            prompts = one.prompts(one.data, bench.sample(one.data.valid, 4), PLAIN, None)
            bench.scored(model, one.untrained(model).predict, prompts)
        finally:
            AcceleratorState._reset_state()
    assert seen == [True, False]


def test_sasrec_inside_a_prompt_reads_as_many_items_as_its_settings_say(
    tmp_path: Path, few: Any, monkeypatch: pytest.MonkeyPatch
):
    from reprokit.prompts import HYBRID

    real = bench.cf_settings
    longer = lambda run, kind: dataclasses.replace(real(run, kind), max_len=40)  # noqa: E731
    monkeypatch.setattr(bench, "cf_settings", longer)
    for cf, wanted in (("sasrec", 40), ("mf+sasrec", 40), ("mf", 0)):
        one = bench_of("ccf-llm", tmp_path, HYBRID, cf=cf)
        prompts = one.prompts(one.data, few.test, HYBRID, None)
        assert prompts.recent.shape == (len(few.test), wanted)
        every = np.arange(len(few.test))
        np.testing.assert_array_equal(prompts.recent, few.histories(few.test, every, wanted))


def test_collm_starts_from_the_stage_that_tallrec_trained(tmp_path: Path, few: Any):
    execute("tallrec", "demo-ml-1m", tmp_path, tmp_path, **SHORT)
    before = {path.name: path.read_bytes() for path in (tmp_path / "stages").iterdir()}
    execute("collm", "demo-ml-1m", tmp_path, tmp_path, **SHORT, cf="mf")
    after = {path.name: path.read_bytes() for path in (tmp_path / "stages").iterdir()}
    assert before.items() <= after.items()
    assert len(before) == 1 and len(after) == 3  # MF and the mapping are new


def test_kept_stages_change_no_score(tmp_path: Path, few: Any):
    """A run alone, and the same run where every stage stands already, give the same bytes."""
    first = execute("ccf-llm", "demo-ml-1m", tmp_path, tmp_path, **SHORT, cf="sasrec")
    again = execute("ccf-llm", "demo-ml-1m", tmp_path, tmp_path, **SHORT, cf="sasrec")
    other = execute("ccf-llm", "demo-ml-1m", tmp_path, tmp_path / "new", **SHORT, cf="sasrec")
    for run in (again, other):
        np.testing.assert_array_equal(
            first.predictions["test/scores"], run.predictions["test/scores"]
        )
    assert [run.data["stages reused"] for run in (first, again, other)] == [0, 3, 0]


def stage(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a stage is made of, and its weights; without where and when it was made."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["reprokit"])
        weights = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    del header["provenance"]
    return header, weights


def test_no_stage_sees_a_test_label(tmp_path: Path, few: Any, monkeypatch: pytest.MonkeyPatch):
    """With every test label turned around, and the histories that follow from them, the trained
    stages are the same bytes."""
    execute("ccf-llm", "demo-ml-1m", tmp_path, tmp_path / "a", **SHORT, cf="sasrec")
    real = data.ctr_split

    def turned(name: str, events: data.Events, part: np.ndarray, *rest: Any) -> data.CTRData:
        ratings = np.where(part == 2, 6 - events.ratings, events.ratings)
        return real(name, dataclasses.replace(events, ratings=ratings), part, *rest)

    monkeypatch.setattr(data, "ctr_split", turned)
    other = shortened(data.demo(0, "demo-ml-1m"))
    assert (other.test.labels != few.test.labels).mean() > 0.5
    monkeypatch.setattr(click, "load_click_data", lambda *_: other)
    execute("ccf-llm", "demo-ml-1m", tmp_path, tmp_path / "b", **SHORT, cf="sasrec")
    stages = [sorted((tmp_path / name / "stages").glob("*.safetensors")) for name in "ab"]
    assert [path.name for path in stages[0]] == [path.name for path in stages[1]]
    assert [stage(path) for path in stages[0]] == [stage(path) for path in stages[1]]


def test_a_damaged_stage_is_made_again(tmp_path: Path, few: Any):
    first = execute("tallrec", "demo-ml-1m", tmp_path, tmp_path, **SHORT)
    (kept,) = (tmp_path / "stages").iterdir()
    whole, content = stage(kept), kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = execute("tallrec", "demo-ml-1m", tmp_path, tmp_path, **SHORT)
    assert stage(kept) == whole
    np.testing.assert_array_equal(
        first.predictions["test/scores"], again.predictions["test/scores"]
    )


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Mistral"])
def test_a_checkpoint_of_each_family_runs_by_its_path(family: str, tmp_path: Path, few: Any):
    import transformers

    from reprokit import homemade, prompts

    source, _ = homemade.prepare(
        "tiny", bench.item_texts(few), prompts.frame(), tmp_path, wholes=prompts.wholes()
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    folder = tmp_path / family
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    short = {**SHORT, "llm": str(folder)}
    result = execute("ccf-llm", "demo-ml-1m", tmp_path, tmp_path / "out", **short, cf="mf")
    assert result.predictions["test/scores"].std() > 0
    assert result.deviations == (f"{folder} in place of Vicuna-7B",)


def test_the_ten_items_of_the_prompt_are_those_that_mf_ranks_highest(tmp_path: Path, few: Any):
    import torch

    from reprokit.collaborative import MF

    torch.manual_seed(0)
    model = MF(few.n_users, few.n_items, 8, 1.0)
    found = bench.best_items(model, few, 10)
    users, items = (vectors.detach().numpy() for vectors in model.vectors())
    pool = np.unique(few.test.items)
    for user in (1, 7, few.n_users - 1):
        ranked = pool[np.argsort(-(items[pool] @ users[user]))]
        np.testing.assert_array_equal(found[user], ranked[:10])


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
def test_table_5_finds_its_user_by_content():
    loaded = load_click_data("ml-1m", DATA)
    at, found = inspection.case_rows(loaded)
    assert found
    assert [loaded.titles[item].split(" (")[0] for item in loaded.test.items[at]] == [
        "Deconstructing Harry",
        "Big Daddy",
        "But I'm a Cheerleader",
        "Desperately Seeking Susan",
        "Lake Placid",
    ]
    assert loaded.test.labels[at].tolist() == [1, 0, 1, 1, 0]
    assert len(set(loaded.test.users[at])) == 1


def test_table_5_ranks_five_films_by_three_systems(tmp_path: Path, few: Any):
    result = execute("case", "demo-ml-1m", tmp_path, tmp_path, **SHORT)
    for name in ("lightgcn", "llm", "ccf-llm"):
        assert sorted(result.metrics[f"{name}/{at}"] for at in range(5)) == [1, 2, 3, 4, 5]
    labels = [result.metrics[f"label/{at}"] for at in range(5)]
    assert set(labels) == {0, 1}


def test_figure_4_puts_three_kinds_of_vectors_on_a_plane(tmp_path: Path, few: Any):
    result = execute("item-map", "demo-ml-1m", tmp_path, tmp_path, **SHORT, items=40)
    points = result.predictions
    assert list(dict.fromkeys(points["points/modality"])) == ["aligned CF", "LLM", "fused"]
    assert {len(column) for column in points.values()} == {120}
    assert np.isfinite(points["points/x"]).all()
    assert result.metrics["separation/aligned"] > 0.9


def test_nearest_agree_knows_clouds_apart_mixed_and_twins():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    assert inspection.nearest_agree(one, two + 100) == 1.0
    assert inspection.nearest_agree(one, two) == pytest.approx(0.5, abs=0.08)
    assert inspection.nearest_agree(one, one + 1e-6) == 0.0


@pytest.mark.slow
def test_over_five_seeds_ccf_llm_stands_above_its_cf_model_and_above_the_text(tmp_path: Path):
    """The planted order in the demo, with MF: see the README for the other CF models."""
    means = {}
    for system, chosen in (("mf", {}), ("tallrec", {}), ("ccf-llm", {"cf": "mf"})):
        scores = []
        for seed in range(5):
            settings = SYSTEMS[system].configure("ml-1m", "demo", chosen)
            run = Run("ccf_llm", system, "demo-ml-1m", settings, seed, "", backbone="tiny")
            job = Job(run, tmp_path, tmp_path, 20, Progress(quiet=True))
            scores.append(SYSTEMS[system].execute(job).metrics["test/auc"])
        means[system] = float(np.mean(scores))
    assert means["ccf-llm"] > means["mf"] > means["tallrec"], means
