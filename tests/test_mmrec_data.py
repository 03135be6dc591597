"""MMREC on data as published, instruments and restaurants; an endpoint; what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_endpoint
from conftest import never
from encoder_models import save_timm, sentence  # noqa: F401
from mmrec_runs import FEW, ROWS, SMALL, Made, data_of, few, few_people, forget, make
from PIL import Image
from test_asking import server  # noqa: F401
from test_captions_models import make_blip2
from test_endpoint import Server
from test_reviews import picture, review, shop
from test_reviews import release as write_release

from reprokit import (
    asking,
    captions,
    cli,
    encoders,
    homemade,
    profiles,
    reviewing,
    synthetic,
    synthetic_media,
)
from reprokit.plan import Request, plan
from reprokit.profiles import seen_pictures
from reprokit.reproduce import DONE, INCOMPLETE
from reprokit.runs import RequestError
from reprokit.summaries import PRICE, SUMMARY, TYPES

__all__ = ["few_people"]  # the fixture


# --- a data set that the paper does not use -----------------------------------------------------
def instruments(data_dir: Path) -> Path:
    """Reviews of instruments as their publisher writes them: 24 people, 80 days."""
    rng = np.random.default_rng(0)
    rows = []
    for day in range(80):
        for user in rng.choice(24, 3, replace=False):
            item = int(rng.integers(9))
            stars = 5.0 if (item + user) % 3 or rng.random() < 0.2 else 2.0
            words = "a cheap guitar, lovely sound" if stars > 3 else "an overpriced guitar, broken"
            text = f"This is {words}, string {item}."
            rows.append(
                review(f"u{user}", f"B{item}", day, overall=stars, reviewText=text, summary="")
            )
    shop(data_dir, rows, packed=True)
    return data_dir


def test_table_2_on_amazon_s_instruments_stands_beside_and_reproduces_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    forget()
    arguments = ["reproduce", "mmrec/table2", "--preset", "small", "--seeds", "1"]
    arguments += ["--dataset", "amazon-musical-instruments", "--text-encoder", "tiny"]
    for setting in FEW:
        arguments += ["--set", setting]
    arguments += ["--data-dir", str(instruments(tmp_path / "data")), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 3
    reason = "amazon-musical-instruments has no images here"
    assert reason in capsys.readouterr().out
    folder = tmp_path / "out/small/mmrec"
    names = sorted(path.name for path in folder.iterdir())
    endings = (".compare.csv", ".csv", ".json", ".md")
    assert names == [f"table2-amazon-musical-instruments{ending}" for ending in endings]
    shown = (folder / names[3]).read_text()
    compared = list(csv.DictReader((folder / names[0]).open()))
    for one in compared:
        pictured = one["row"].startswith("proposed-img")
        assert (one["mean"] == "") == (one["verdict"] == "empty") == pictured, one["row"]
        if pictured:
            assert reason in one["reason"]
        elif one["verdict"] != "ours":
            assert one["verdict"] == "not comparable"
            told = one["reason"].split(", ")
            assert "another data set than the paper's" in told
            assert ("no images" in told) != one["row"].startswith("proposed-text")
    assert "**Made on amazon-musical-instruments**, which the paper does not use" in shown
    assert "| reproduced" not in shown and "| not comparable |" in shown
    assert "the publisher's file 2,458,371: these numbers come from other data" in shown
    assert len(list((tmp_path / "out/runs").glob("*.json"))) == 18 + 2


def test_on_instruments_the_demo_lacks_the_rows_of_images_alone(tmp_path: Path):
    chosen: dict[str, Any] = {"dataset": "amazon-musical-instruments", "seeds": 1, "rows": ROWS}
    made = make(tmp_path, overrides=FEW, **chosen)
    assert made.status == INCOMPLETE and not made.outcome.failed
    filled = {label for label, values in made.cells().items() if all(values)}
    assert filled == set(ROWS[:3])


def test_pictures_of_the_instruments_themselves_are_read(tmp_path: Path):
    data_dir = instruments(tmp_path / "data")
    for item in range(9):
        picture(data_dir, f"B{item}.png", shade=28 * item, dataset="amazon-musical-instruments")
    chosen: dict[str, Any] = {"dataset": "amazon-musical-instruments", "preset": "small"}
    chosen |= {"data_dir": data_dir, "captioner": "palette"}
    shown = make(tmp_path / "out", "mmrec/figure3", **chosen)
    assert shown.status == DONE and all(all(values) for values in shown.cells().values())
    more = {"text_encoder": "tiny", "image_encoder": "tiny", "seeds": 1, "overrides": FEW}
    made = make(tmp_path / "out", rows=ROWS, **more, **chosen)
    assert made.status == DONE
    assert all("no images" not in one["reason"] for one in made.compared() if one["row"] in ROWS)


# --- the restaurants as published ---------------------------------------------------------------
GOOGLE = "google-restaurants"
TINY_WORLD: Any = {**SMALL, "n_users": 16, "n_films": 16, "events_per_user": 8}


def restaurants(data_dir: Path, images: bool = True) -> Path:
    """The release of a small world, both classes in each split; of its pictures every seventh is
    missing, one is damaged, one is a PNG."""
    world = synthetic.make_world(synthetic.Config(**TINY_WORLD))
    files = synthetic_media.restaurant_reviews(world, per_user=3)
    for records in files.values():
        records[0]["rating"], records[1]["rating"] = 2, 5
    write_release(data_dir, **files)
    if images:
        named = [pic for records in files.values() for one in records for pic in one["pics"]]
        pictures = list(dict.fromkeys(named))
        folder = data_dir / GOOGLE / "images"
        folder.mkdir()
        for at, pixels in enumerate(synthetic_media.restaurant_photos(world, pictures)):
            ending = "png" if at == 1 else "jpg"
            if at % 7:
                shown = Image.fromarray(np.moveaxis(pixels, 0, 2))
                shown.save(folder / f"{pictures[at]}.{ending}")
        (folder / f"{pictures[2]}.jpg").write_bytes(b"no picture")
    return data_dir


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, sentence: Path) -> dict[str, str]:  # noqa: F811
    """Random models in folders, by the option that names them."""
    folder = tmp_path_factory.mktemp("random")
    model, processor = make_blip2("opt")
    with homemade.quiet():
        model.save_pretrained(folder / "captions")
        processor.save_pretrained(folder / "captions")
    texts = ["The thai soup is cheap.", "An overpriced pizza", "Slow staff, fair price"]
    return {
        "captioner": str(folder / "captions"),
        "image_encoder": f"timm:{save_timm(folder / 'resnet')}",
        "llm": homemade.prepare(homemade.TINY, texts, [SUMMARY, PRICE, TYPES], folder)[0],
        "text_encoder": str(sentence),
    }


SHORT = (
    *few("baseline"),
    *few("proposed", max_reviews=2, max_words=20, max_new_tokens=8),
)


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no pretrained model may be asked."""
    monkeypatch.setattr(asking.Local, "ask", never)
    monkeypatch.setattr(captions.Blip, "__init__", never)
    monkeypatch.setattr(encoders, "SentenceText", never)
    monkeypatch.setattr(encoders, "TimmImage", never)


def test_the_paper_preset_runs_on_the_published_files_with_models_in_folders(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    chosen: dict[str, Any] = {"preset": "paper", "rows": ROWS[:2], "seeds": 1, **models}
    chosen |= {"overrides": SHORT, "data_dir": restaurants(tmp_path / "data")}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reviewing.Trainer, "ranked", killed)
        make(out, **chosen)
    (told,) = out.glob("captions/*.jsonl")
    (asked,) = out.glob("asked/*.jsonl")
    before = told.read_bytes(), asked.read_bytes()
    with monkeypatch.context() as patch:  # what was said before the kill is not asked for again
        patch.setattr(asking.Local, "ask", never)
        patch.setattr(captions.Blip, "__init__", never)
        made = make(out, **chosen)
    assert made.status == DONE, made.outcome
    assert (told.read_bytes(), asked.read_bytes()) == before
    check_notes(made, len(told.read_bytes().splitlines()))

    alone(monkeypatch)
    again = make(out, **chosen)
    assert again.outcome.executed == 0 and again.outcome.cached == len(made.planned.wanted)
    first = {path: path.read_bytes() for path in out.glob("runs/*.npz")}
    for path in (*out.glob("runs/*"), *out.glob("stages/*")):
        path.unlink()
    assert make(out, **chosen).status == DONE
    assert first == {path: path.read_bytes() for path in out.glob("runs/*.npz")}


def killed(*_: Any) -> Any:
    raise KeyboardInterrupt


def check_notes(made: Made, captioned: int) -> None:
    """What stood in for the paper's models, and what could not be read or understood."""
    request = made.planned.request
    data = data_of(made, GOOGLE)
    proposed, baseline = (made.stored(made.rows[label][0]) for label in ROWS[:2])
    judged = {one["verdict"] for one in made.compared() if one["row"] in ROWS[:2]}
    assert judged == {"not comparable"}
    assert set(proposed["deviations"]) == {
        f"captions by {request.captioner} in place of BLIP-2",
        f"texts of {request.llm} in place of GPT-3.5 Turbo's",
        f"texts by {request.text_encoder} in place of MiniLM-L6-v2",
    }
    assert set(baseline["deviations"]) == {
        f"images by {request.image_encoder} in place of ResNet-50",
        f"texts by {request.text_encoder} in place of MiniLM-L6-v2",
    }
    seen = seen_pictures(data)
    shown, missing = made.text(".md"), int((~data.has_picture[seen]).sum())
    assert missing > 3 and captioned <= len(seen) - missing - 1
    for stored in (proposed, baseline):
        for said in (*stored["deviations"], *stored["notes"]):
            assert said in shown
    told = f"pictures of training reviews are used ({missing} missing, 1 unreadable)"
    assert told in " ".join(baseline["notes"])
    notes = " ".join(proposed["notes"])
    assert f"({missing} missing, 1 unreadable)" in notes
    for count in (
        "{} prompts were shortened",
        "{} answers fit no tag and count as none",
        "left out: {} unknown types",
        "{} sets had more reviews than are read",
    ):
        assert any(numbers(notes, count)), count


def numbers(text: str, form: str) -> list[int]:
    """The numbers that stand in the place of {}."""
    pattern = re.escape(form).replace(r"\{\}", r"([\d,]+)")
    return [int(found.replace(",", "")) for found in re.findall(pattern, text)]


def test_a_damaged_picture_among_the_examples_leaves_the_others(tmp_path: Path):
    data_dir = restaurants(tmp_path / "data")
    chosen: dict[str, Any] = {"preset": "small", "captioner": "palette", "data_dir": data_dir}
    whole = make(tmp_path / "out", "mmrec/figure3", **chosen)
    assert whole.status == DONE
    name, _ = whole.cells()["Picture 3"]
    (path,) = (data_dir / GOOGLE / "images").glob(f"{name}.*")
    path.write_bytes(b"no picture either")
    made = make(tmp_path / "out", "mmrec/figure3", **chosen)
    assert made.status == DONE, made.outcome
    cells = made.cells()
    assert cells.pop("Picture 3") == [name, "(none)"]
    assert "(none)" not in {caption for _, caption in cells.values()}


def test_a_folder_s_name_makes_no_model_the_paper_s(tmp_path: Path, models: dict[str, str]):
    """One that is called as the paper's is named as what stood in for it all the same."""
    named = {}
    for kind, name in (("captioner", "blip2-toy"), ("llm", "gpt-3.5-turbo-1106")):
        named[kind] = str(shutil.copytree(models[kind], tmp_path / name))
    chosen: dict[str, Any] = {"preset": "small", "rows": ROWS[:1], "seeds": 1, **named}
    chosen |= {"text_encoder": "tiny", "overrides": SHORT}
    made = make(tmp_path / "out", data_dir=restaurants(tmp_path / "data"), **chosen)
    said = made.stored(made.rows[ROWS[0]][0])["deviations"]
    assert f"captions by {named['captioner']} in place of BLIP-2" in said
    assert f"texts of {named['llm']} in place of GPT-3.5 Turbo's" in said


def test_answers_that_were_cut_are_told_where_no_summary_is_read(
    tmp_path: Path, models: dict[str, str]
):
    chosen: dict[str, Any] = {"preset": "small", "rows": ROWS[3:], "seeds": 1, "llm": models["llm"]}
    chosen |= {"captioner": "palette", "text_encoder": "tiny", "overrides": SHORT}
    made = make(tmp_path / "out", data_dir=restaurants(tmp_path / "data"), **chosen)
    notes = " ".join(made.stored(made.rows[ROWS[3]][0])["notes"])
    for what in ("price tags", "types"):
        assert re.search(rf"{what}: \d+ of \d+ answers were cut at 8 tokens", notes)
    assert numbers(notes, "{} prompts were shortened")[0] > 0
    assert numbers(notes, "{} pieces of answers that are no type")[0] > 0


# --- an endpoint --------------------------------------------------------------------------------
def spoken(model: str, said: str) -> dict[str, Any]:
    """A chat model that answers as it is asked."""
    answer = f"They liked {len(said)} things."
    if said.startswith(PRICE):
        answer = ("Fair price.", "low price", "The category is: overpriced", "Hm.")[len(said) % 4]
    if said.startswith(TYPES):
        answer = ("'Thai, Sushi'", "Pizza place", "I cannot tell from these reviews.")[
            len(said) % 3
        ]
    reply = real_completion(model, said)
    reply["choices"][0]["message"]["content"] = answer
    return reply


real_completion = test_endpoint.completion


def test_an_endpoint_answers_and_its_answers_replay_without_a_key(
    tmp_path: Path,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(test_endpoint, "completion", spoken)
    out, row = tmp_path / "out", "proposed-text / basic / 0.10"
    chosen: dict[str, Any] = {"preset": "paper", "rows": (row,), "seeds": 1}
    chosen |= {"text_encoder": "tiny", "overrides": SHORT}
    chosen["data_dir"] = restaurants(tmp_path / "data", images=False)
    made = make(out, **chosen)
    assert made.status == DONE, made.outcome
    prompts = {body["messages"][0]["content"] for body in server.asked}
    for question in (SUMMARY.partition("[of]")[0], PRICE, TYPES):
        assert any(prompt.startswith(question) for prompt in prompts)
    assert all(body["max_tokens"] == 8 for body in server.asked)
    assert len(server.asked) == len(prompts)  # none twice
    (run,) = made.rows[row]
    assert made.stored(run)["deviations"] == ["texts by tiny in place of MiniLM-L6-v2"]
    notes = " ".join(made.stored(run)["notes"])
    assert "endpoint:gpt-3.5-turbo-1106" in notes and "3 distinct types" in notes
    assert numbers(notes, "{} answers fit no tag and count as none")[0] > 0
    first = {path: path.read_bytes() for path in out.glob("runs/*.npz")}

    monkeypatch.delenv("REPROKIT_API_KEY")
    asked = len(server.asked)
    for folder in ("runs", "stages", "asked", "features"):
        shutil.rmtree(out / folder)
    again = make(out, **chosen)
    assert again.status == DONE and len(server.asked) == asked
    assert first == {path: path.read_bytes() for path in out.glob("runs/*.npz")}

    shutil.rmtree(out)
    without = make(out, **chosen)
    assert without.status == INCOMPLETE and not without.outcome.failed
    assert "REPROKIT_API_KEY" in without.text(".md") and not any(without.cells()[row])


# --- errors before long work --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "setting", "message"),
    [
        ("table1", "proposed.leakage=maybe", "leakage must be exclude_current or as_printed"),
        ("leakage", "proposed.leakage=both", "leakage must be exclude_current or as_printed"),
        ("table2", "proposed.parts=text,sound", "parts must be one of"),
        ("table2", "baseline.parts=image,text", "parts must be one of"),
        ("table1", "baseline.weighting=cube", "weighting must be one of"),
        ("table1", "baseline.images=some", "images must be one of"),
        ("table1", "proposed.positive=5", "positive is out of range"),
        ("table1", "proposed.threshold=1", "threshold is out of range"),
        ("table1", "proposed.dropout=1", "dropout is out of range"),
        ("table1", "proposed.max_epochs=3", "max_epochs is out of range"),
        ("table1", "proposed.top=64,x", "top must be whole numbers with commas between"),
        ("table1", "proposed.types=0", "types is out of range"),
        ("table1", "proposed.max_words=0", "max_words is out of range"),
        ("table1", "proposed.llm=none", "needs a language model, or llm=extractive"),
        ("figure2", "summary-examples.sentences=0", "sentences is out of range"),
        ("figure2", "summary-examples.llm=none", "needs a language model, or llm=extractive"),
        ("figure2", "summary-examples.examples=0", "examples is out of range"),
        ("figure3", "caption-examples.examples=-1", "examples is out of range"),
        ("table1", "proposed.leek=1", "proposed has no setting 'leek'"),
        ("table1", "constant.lr=1", "constant has no setting 'lr'"),
    ],
)
def test_a_setting_that_cannot_be_ends_with_one_line_and_status_2(
    target: str, setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wanted = ["reproduce", f"mmrec/{target}", "--set", setting, "--out", str(tmp_path / "out")]
    assert cli.main(wanted) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out/runs").exists()


def test_a_split_of_one_class_leaves_the_cells_empty_before_a_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = restaurants(tmp_path / "data", images=False) / GOOGLE / "filter_all_t.json"
    files = json.loads(path.read_text())
    for one in files["val"]:
        one["rating"] = 4
    path.write_text(json.dumps(files))
    monkeypatch.setattr(profiles, "dense_features", never)
    chosen: dict[str, Any] = {"text_encoder": "tiny", "seeds": 1, "preset": "small"}
    made = make(tmp_path / "out", data_dir=path.parent.parent, **chosen)
    assert made.status == INCOMPLETE and not made.outcome.failed and not made.outcome.executed
    reason = f"all {len(files['val'])} valid reviews have the same label, a rating above 3 or not"
    assert reason in made.text(".md")
    assert {one["verdict"] for one in made.compared()} == {"empty", "ours"}


def test_without_images_a_row_that_needs_them_is_empty_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the paper preset no other row is made in its place."""
    monkeypatch.setattr(profiles, "price_features", never)
    data_dir = restaurants(tmp_path / "data", images=False)
    chosen: dict[str, Any] = {"preset": "paper", "rows": ROWS[:2], "seeds": 1}
    chosen |= {"captioner": "palette", "text_encoder": "tiny", "image_encoder": "tiny"}
    for _ in range(2):
        made = make(tmp_path / "out", data_dir=data_dir, **chosen)
        assert made.status == INCOMPLETE and not made.outcome.failed
        assert set(made.outcome.unavailable) == {made.rows[label][0].id for label in ROWS[:2]}
        reason = "has no images here: put them into google-restaurants/images/<picture id>.jpg"
        assert reason in made.text(".md")
        picture(data_dir, "of-no-row.jpg")  # changes nothing


def test_a_request_for_what_no_row_has_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match="--image-encoder tiny: no row of mmrec/leakage has an"):
        plan(Request(("mmrec/leakage",), out=tmp_path, image_encoder="tiny"))
    with pytest.raises(RequestError, match="no target has data set 'amazon-book'"):
        plan(Request(("mmrec/table1",), out=tmp_path, dataset="amazon-book"))
