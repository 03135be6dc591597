"""LLM-EMF on the data as published, small ones and the real files, with models in folders."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, needs
from encoder_models import save_clip
from llm_emf_runs import OWN, few_people, make
from PIL import Image
from test_crossdata import row

from reprokit import cli, homemade, llm_emf
from reprokit.crossdata import CDSR_FILES, load_cross_data
from reprokit.enrichment import TEMPLATE
from reprokit.knowledge import LEAK_NOTE
from reprokit.progress import Progress
from reprokit.reproduce import DONE, INCOMPLETE
from reprokit.runs import Job, Run

__all__ = ["few_people"]  # the fixture


# --- the data as published ----------------------------------------------------------------------
N = 20  # items of each domain


def release(data_dir: Path, titles: bool = True, images: bool = True) -> Path:
    """Food-Kitchen as its publishers write it, small: 30 training rows, 12 of each other split."""
    rng = np.random.default_rng(0)
    folder = data_dir / "cdsr/Food-Kitchen"
    folder.mkdir(parents=True)
    asins = [f"B{at:09d}" for at in range(2 * N)]
    for name, first in (("Alist", 0), ("Blist", N)):
        lines = [f"{at}\t{asins[first + at]}\t{at}\n" for at in range(N)]
        (folder / f"{name}.txt").write_text("".join(lines))
    number = 0
    for split, rows in (("train", 30), ("valid", 12), ("test", 12)):
        lines = []
        for at in range(rows):
            items = rng.permutation(2 * N)[: rng.integers(4, 10)].tolist()
            if (items[-1] >= N) != bool(at % 2):  # targets of both domains
                items[-1] = (items[-1] + N) % (2 * N)
            items = list(dict.fromkeys(items))
            lines.append(row(at, number, *zip(items, range(len(items)), strict=True)))
            number += 1
        (folder / f"{split}data_new.txt").write_text("".join(lines))
    if titles:
        words = ["green", "tea", "iron", "pan", "salt"]
        named = [f"{asin}\t{words[at % 5]} {words[at % 3]}\n" for at, asin in enumerate(asins[4:])]
        (folder / "titles.tsv").write_text("".join(named))
    if images:
        (folder / "images").mkdir()
        for at, asin in enumerate(asins[:-3]):
            pixels = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels // 2 + np.uint8(3 * at)).save(folder / f"images/{asin}.jpg")
    return data_dir


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    texts = ["green tea", "iron pan", "salt"]
    folder = tmp_path_factory.mktemp("llama")
    return homemade.prepare(homemade.TINY, texts, [TEMPLATE], folder)[0]


def test_the_paper_preset_runs_on_the_published_files_with_models_in_folders(
    tmp_path: Path, llama: str
):
    clip = f"clip:{save_clip(tmp_path / 'clip')}"
    small = ("llm-emf.max_epochs=2", "llm-emf.dim=8", "llm-emf.max_new_tokens=4")
    made = make(
        tmp_path / "out",
        preset="paper",
        rows=("LLM-EMF", "LLM-EMF, ids alone"),
        seeds=1,
        llm=llama,
        text_encoder=clip,
        image_encoder=clip,
        overrides=(*OWN, *small, "llm-emf.grid=alpha=0.3,0.7"),
        data_dir=release(tmp_path / "data"),
    )
    assert made.status == DONE, made.outcome
    title = "llm-emf (id,text,llm,image) on food-kitchen, seed 0"
    stored, alone = made.stored(title), made.predictions("llm-emf (id) on food-kitchen, seed 0")
    assert not np.array_equal(made.predictions(title)["test/counts"], alone["test/counts"])
    assert stored["selection"]["chosen point"]["alpha"] in (0.3, 0.7)
    assert stored["run"]["settings"]["llm"] == llama
    kinds = [part.split(" ")[0] for part in stored["run"]["backbone"].split("; ")]
    assert sorted(kinds) == ["image", "llm", "text"]
    assert stored["deviations"] == [
        "other training rows than the release's",
        f"images by {clip} in place of CLIP ViT-B/32",
        f"texts by {clip} in place of CLIP ViT-B/32",
        f"texts of {llama} in place of DeepSeek-R1's",
    ]
    shown, notes = made.text(".md"), " ".join(stored["notes"])
    for said in (
        "37 of 40 items of food-kitchen have an image",
        "36 of 40 items of food-kitchen have a title",
        "it has 30 rows, that one 34,117",
    ):
        assert said in shown and said in notes
    mark = "not comparable with the paper: LLM-EMF:"
    (line,) = [line for line in shown.splitlines() if line.startswith(mark)]
    assert f"texts by {clip} in place of" in line and f"texts of {llama} in place of" in line
    (record,) = (tmp_path / "out/asked").glob("*.jsonl")
    asked = record.read_text().splitlines()
    assert len(asked) == 30  # one for each distinct title of a domain
    assert len(list((tmp_path / "out/features").glob("*.npy"))) == 2


def test_what_has_no_encoder_or_no_file_is_said_or_leaves_the_row_empty(tmp_path: Path):
    bare = release(tmp_path / "data", titles=True, images=False)
    chosen: dict[str, Any] = {
        "preset": "small",
        "rows": ("LLM-EMF",),
        "seeds": 1,
        "text_encoder": "tiny",
        "overrides": (*OWN, "llm-emf.max_epochs=1"),
        "data_dir": bare,
    }
    made = make(tmp_path / "a", **chosen)
    assert made.status == DONE
    stored = made.stored("llm-emf (all) on food-kitchen, seed 0")
    assert stored["deviations"] == [
        "other training rows than the release's",
        "no image",
        "no LLM text",
        "texts by tiny in place of CLIP ViT-B/32",
    ]
    assert "no image, no LLM text" in made.text(".md")
    assert "not comparable with the paper: LLM-EMF" in made.text(".md")
    for more, reason in (
        ({"image_encoder": "tiny"}, "food-kitchen has no item images here: put them into images/"),
        ({"overrides": ("llm-emf.parts=id,image",)}, "no image part without its model: name one"),
        ({"llm": "planted"}, "'planted' has no words for food-kitchen: name a model with --llm"),
    ):
        overrides = (*chosen["overrides"], *more.get("overrides", ()))
        made = make(tmp_path / "a", **{**chosen, **more, "overrides": overrides})
        assert made.status == INCOMPLETE and not made.outcome.failed
        (found,) = made.outcome.unavailable.values()
        assert reason in found and reason in made.text(".md")
    nothing = release(tmp_path / "nothing", titles=False, images=False)
    made = make(tmp_path / "b", **{**chosen, "data_dir": nothing})
    assert "food-kitchen has no item titles here" in made.text(".md")


def test_mifn_without_amazons_metadata_is_empty_and_no_other_row_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["reproduce", "llm_emf/table2", "--preset", "small", "--seeds", "1"]
    arguments += ["--row", "MIFN", "--row", "BPRMF", "--data-dir", str(release(tmp_path / "data"))]
    for setting in (*OWN, "mifn.max_epochs=1", "bprmf.max_epochs=1", "mifn.dim=8"):
        arguments += ["--set", setting]
    arguments += ["--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 3
    shown = capsys.readouterr().out
    reason = (
        "MIFN needs its knowledge graph: put amazon-2014/meta_Grocery_and_Gourmet_Food.json.gz and "
        "amazon-2014/meta_Home_and_Kitchen.json.gz of the 2014 Amazon release into the data"
    )
    assert reason in shown
    table = tmp_path / "out/small/llm_emf/table2"
    cells = list(csv.reader(io.StringIO(table.with_suffix(".csv").read_text())))
    filled = {label: all(values) for label, *values in cells[1:]}
    assert filled["BPRMF"] and not filled["MIFN"]
    compared = list(csv.DictReader(io.StringIO(table.with_suffix(".compare.csv").read_text())))
    empty = {one["row"] for one in compared if one["reason"].startswith("MIFN needs")}
    assert empty == {"MIFN"}

    folder = tmp_path / "data/amazon-2014"
    folder.mkdir()
    entries = {
        "asin": "B000000001",
        "related": {"also_bought": ["B000000002", "B000000021"]},
        "categories": [["Grocery", "Tea"]],
    }
    for name in ("Grocery_and_Gourmet_Food", "Home_and_Kitchen"):
        (folder / f"meta_{name}.json.gz").write_bytes(gzip.compress(f"{entries!r}\n".encode()))
    assert cli.main(arguments) == 0
    assert LEAK_NOTE in table.with_suffix(".md").read_text()


def test_the_language_models_words_are_read_after_the_title(tmp_path: Path, llama: str):
    settings = llm_emf.LLMEMFSettings(llm=llama, max_new_tokens=12, text_encoder="tiny")
    run = Run("llm_emf", "llm-emf", "food-kitchen", settings, 0, "", backbone=f"llm {llama}")
    data = load_cross_data("food-kitchen", release(tmp_path / "data"))
    job = Job(run, tmp_path, tmp_path / "out", 20.0, Progress(quiet=True))
    texts, what, _ = llm_emf.item_texts(job, data)
    (record,) = (tmp_path / "out/asked").glob("*.jsonl")
    assert len(texts) == 40 and what == {"llm": llama, "max_new_tokens": 12}
    for title, text in zip(data.titles[1:], texts, strict=True):
        assert text.startswith(title) and bool(text) == bool(title)
    assert any(len(text) > len(title) for title, text in zip(data.titles[1:], texts, strict=True))
    assert "Kitchen" in record.read_text() and "Food" in record.read_text()
    alone = dataclasses.replace(run, settings=llm_emf.LLMEMFSettings(parts="id,text"))
    assert llm_emf.item_texts(dataclasses.replace(job, run=alone), data)[0] == data.titles[1:]


# --- the real files -----------------------------------------------------------------------------
@needs(*(f"cdsr/Food-Kitchen/{name}" for name in CDSR_FILES))
def test_table_1_counts_real_food_kitchen_and_says_why_its_training_rows_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train = len(load_cross_data("food-kitchen", DATA).train)
    wanted = ["reproduce", "llm_emf/table1", "--preset", "small", "--data-dir", str(DATA)]
    status = cli.main([*wanted, "--out", str(tmp_path), "--dataset", "food-kitchen"])
    assert status == 0
    text = (tmp_path / "small/llm_emf/table1.compare.csv").read_text()
    found = {(r["row"], r["column"]): r for r in csv.DictReader(io.StringIO(text))}
    for domain, items, valid, test in (
        ("Food", 29_207, 2_722, 2_747),
        ("Kitchen", 34_886, 5_451, 5_659),
    ):
        for column, expected in (("#Items", items), ("#Valid", valid), ("#Test", test)):
            cell = found[domain, column]
            assert (int(cell["mean"]), cell["verdict"]) == (expected, "equal")
    cell = found["Food", "#Train"]
    assert int(cell["mean"]) == train and cell["published"] == "34117"
    assert cell["verdict"] == ("equal" if train == 34_117 else "differs")
    shown = (tmp_path / "small/llm_emf/table1.md").read_text()
    if train == 34_117:
        assert "the training file here is not the release's" not in shown
    else:
        assert f"| Food    | #Train     | {train} | 34117 " in shown
        assert f"it has {train:,} rows, that one 34,117" in shown
    if train == 16_579:  # the histories of the evaluated rows
        assert "16,579 of its rows bear the number of a validation or test row" in shown
