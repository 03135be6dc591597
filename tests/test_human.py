"""The human study: from stored runs to blinded sheets, and from returned ones to the cells."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from human_study import cases, damage, fill, job, lines_of, run_of, study
from test_recommending import feedback

from reprokit import cli, human, rating_forms
from reprokit.agreement import holm
from reprokit.human import HUMAN, HUMAN_DATA, explaining_runs, read_key, read_sheets
from reprokit.plan import Plan, Request, Spot
from reprokit.rating_forms import COLUMNS, CRITERIA, SYSTEMS, export, shared_cases
from reprokit.runs import RequestError, Result, Run, Store, Unavailable
from reprokit.tables import Table

__all__ = ["study"]  # the fixture


# --- export -------------------------------------------------------------------------------------
def test_no_sheet_form_or_instruction_names_a_system_or_who_was_asked(study: Path):
    files = [path for path in study.iterdir() if path.is_file() and path.name != "key.json"]
    assert len(files) == 7
    for path in files:
        text = path.read_text(encoding="utf-8-sig").lower()
        assert not re.search(r"explainrec|tallrec|narre|user \d|item \d", text), path


def test_what_the_codes_mean_stands_in_the_key_alone(study: Path):
    key = read_key(study / "key.json")
    told = {}
    for number in (1, 2, 3):
        for line in lines_of(study / f"rater-0{number}.csv"):
            one = key["codes"][line["code"]]
            assert (one["sheet"], one["case"]) == (line["sheet_id"], line["case"])
            at = list(SYSTEMS).index(one["system"])
            assert line["explanation"].startswith(f"'=Reason {at} of ")
            told[line["code"]] = one["system"]
    assert len(told) == 3 * 5 * 3 == len(key["codes"])
    assert sorted(told.values()) == sorted(list(SYSTEMS) * 15)
    for files in key["sheets"].values():
        for name, digest in files.items():
            assert hashlib.sha256((study / name).read_bytes()).hexdigest() == digest


def test_every_rater_has_the_same_cases_in_another_order_and_other_codes(tmp_path: Path):
    export(cases(12), tmp_path, raters=4, items=10)
    key = read_key(tmp_path / "key.json")
    sheets = [lines_of(tmp_path / f"rater-0{n}.csv") for n in (1, 2, 3, 4)]
    orders = [[line["case"] for line in sheet[::3]] for sheet in sheets]
    assert all(sorted(order) == sorted(key["cases"]) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    places = [{key["codes"][line["code"]]["system"] for line in sheet[::3]} for sheet in sheets]
    assert all(len(first) > 1 for first in places)  # no system always comes first
    assert len({line["code"] for sheet in sheets for line in sheet}) == 4 * 30


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path):
    def written(name: str, seed: int) -> dict[str, bytes]:
        export(cases(), tmp_path / name, raters=2, items=3, seed=seed)
        return {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()}

    first = written("a", 0)
    assert first == written("b", 0)
    other = written("c", 1)
    assert all(first[name] != other[name] for name in first if name != "README.txt")


def test_a_key_is_never_written_over(study: Path):
    before = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    with pytest.raises(RequestError, match="the key of another study"):
        export(cases(), study, raters=3, items=5, seed=1)
    after = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    assert before == after


def test_no_code_is_read_as_a_number_or_a_date(monkeypatch: pytest.MonkeyPatch):
    assert not set("AEIOUY01") & set(rating_forms.LETTERS)  # 39E675, 01-JULY22
    monkeypatch.setattr(rating_forms, "LETTERS", "2X")
    rng = np.random.default_rng(0)
    assert not any(rating_forms.fresh_code(rng, {}).isdigit() for _ in range(500))


def test_no_cell_is_a_formula(study: Path):
    for line in lines_of(study / "rater-01.csv"):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in line.values())
        assert line["user_history"].startswith("'-Liked")


def test_no_cell_is_taken_for_a_number_or_a_date_and_written_back_as_another(tmp_path: Path):
    titles = ["9/11", "007", "2:37", "Café 9"]
    made = [dataclasses.replace(cases(1)[0], title=title, liked=(title,)) for title in titles]
    export(made, tmp_path, raters=1, items=4)
    shown = {line["item"] for line in lines_of(tmp_path / "rater-01.csv")}
    assert shown == {"'9/11", "'007", "'2:37", "Café 9"}
    path = fill(tmp_path, "rater-01.csv")
    for number in range(2, 14, 2):  # a spreadsheet may take the mark away
        damage(path, number, lambda line: line.update(item=line["item"].removeprefix("'")))
    reading = read_sheets([path], read_key(tmp_path / "key.json"))
    assert (len(reading.ratings), reading.problems) == (12, [])


def test_more_cases_than_there_are_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(RequestError, match=r"^8 cases are explained by all .* lower --items$"):
        export(cases(), tmp_path, items=9)
    assert not list(tmp_path.iterdir())


class Page(HTMLParser):
    """Notes what a form holds; every element must be closed."""

    VOID = ("meta", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.radios: dict[str, list[str]] = {}
        self.legends: list[str] = []
        self.quotes: list[str] = []
        self.ids: list[str] = []
        self.sheet = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        assert not {"src", "href", "action", "srcset", "data"} & set(found), tag
        assert tag not in ("link", "img", "iframe", "object")
        if tag == "input":
            assert self.open[-1] == "label"
            self.radios.setdefault(found["name"], []).append(found["value"])
        self.ids += [found["id"]] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["legend"]:
            self.legends.append(data)
        if self.open[-1:] == ["blockquote"]:
            self.quotes.append(data)
        if self.open[-1:] == ["script"] and data.startswith("{"):
            self.sheet = data


def test_a_form_is_whole_loads_nothing_and_has_three_scales_for_each_explanation(study: Path):
    text = (study / "rater-02.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace("(function () {", ""))
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    lines = lines_of(study / "rater-02.csv")
    names = [f"{line['code']}-{criterion}" for line in lines for criterion in CRITERIA]
    assert list(page.radios) == names
    assert all(values == ["1", "2", "3", "4", "5"] for values in page.radios.values())
    assert len(page.legends) == len(names)
    assert [f"'{quote}" for quote in page.quotes] == [line["explanation"] for line in lines]
    assert len(set(page.ids)) == len(page.ids)
    sheet = json.loads(page.sheet)
    assert sheet["columns"] == list(COLUMNS) and sheet["file"] == "rater-02.csv"
    assert sheet["lines"] == [list(line.values()) for line in lines]


# --- from runs to cases, and back to cells ------------------------------------------------------
def columns(users: list[str], items: list[str], texts: list[str]) -> dict[str, np.ndarray]:
    found = {"users": users, "items": items, "texts": texts}
    return {f"explain/{name}": np.array(column) for name, column in found.items()}


def test_a_case_is_what_all_three_explain_with_what_the_user_liked_before():
    data = feedback()
    row = int(data.rows("test")[0])
    user, item = data.user_ids[data.users[row]], data.item_ids[data.items[row]]
    later = data.item_ids[data.items[row + 1]]
    explained = {
        "explainrec": columns([user, user], [item, later], ["so\n so\x07", "good"]),
        "tallrec": columns([user, user], [later, item], ["", "yes"]),
        "narre": columns([user, user, user], [item, item, later], ["a review", "other", "x"]),
    }
    cases = {case.item: case for case in shared_cases(explained, data, liked=3)}
    assert cases.keys() == {item, later}
    assert cases[later].texts["tallrec"] == "(no explanation)"  # rated for that
    case = cases[item]
    assert (case.user, case.item, case.title) == (user, item, data.titles[data.items[row]])
    assert case.texts == {"explainrec": "so so", "tallrec": "yes", "narre": "a review"}
    before = range(data.starts[data.users[row]], data.history_end[row])
    liked = [data.titles[data.items[e]] for e in before if data.labels[e] == 1]
    assert list(case.liked) == liked[-3:]
    # Another opinion on a test item changes nothing of what is shown.
    labels = np.where(data.split == 2, 1 - data.labels, data.labels).astype(np.int8)
    again = shared_cases(explained, dataclasses.replace(data, labels=labels), liked=3)
    assert again == shared_cases(explained, data, liked=3)


def planned(out: Path, *runs: Run, dataset: str = "") -> Plan:
    request = Request(("explainrec/human",), out=out, dataset=dataset)
    spots = tuple(Spot(Table("explainrec/human", ""), 0, "x", runs=(run,)) for run in runs)
    return Plan(request, (), spots, {}, {})


def test_the_first_run_of_each_system_that_explains_is_taken(tmp_path: Path):
    silent = run_of("tallrec")
    other = run_of("tallrec", settings=human.HumanSettings(draws=700))
    runs = [run_of("explainrec"), run_of("narre")]
    store = Store(tmp_path)
    store.save(silent, Result({"x": 1.0}), {})
    for run in (*runs, other):
        store.save(run, Result({}, columns(["u"], ["i"], ["t"])), {})
    dataset, found = explaining_runs(planned(tmp_path, silent, *runs, other))
    assert dataset == "demo-toy"
    assert found == {"explainrec": runs[0], "tallrec": other, "narre": runs[1]}
    with pytest.raises(RequestError, match="no finished run of TALLRec, NARRE holds"):
        explaining_runs(planned(tmp_path, silent, runs[0]))
    with pytest.raises(RequestError, match=r"of ExplainRec, TALLRec, NARRE holds .* of ml-1m"):
        explaining_runs(planned(tmp_path, *runs, other, dataset="ml-1m"))


def test_export_makes_a_study_of_the_stored_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from reprokit import plan, ratings

    data, store = feedback(), Store(tmp_path)
    rows = data.rows("test")[:6]
    users, items = data.users[rows].tolist(), data.items[rows].tolist()
    runs = [run_of(name) for name in SYSTEMS]
    for run in runs:
        texts = [f"{run.id[:3]} says {n}" for n in range(6)]
        names = [data.user_ids[u] for u in users], [data.item_ids[i] for i in items]
        store.save(run, Result({}, columns(*names, texts)), {})
    asked: list[Request] = []
    monkeypatch.setattr(
        plan, "plan", lambda request: asked.append(request) or planned(tmp_path, *runs)
    )
    monkeypatch.setattr(ratings, "load_feedback", lambda *_: data)
    arguments = ["human", "export", "--out", str(tmp_path), "--data-dir", str(tmp_path)]
    made_with = {"llm": "tiny", "text_encoder": "minilm", "image_encoder": "clip"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in made_with.items()]
    assert cli.main([*arguments, *options, "--items", "5", "--raters", "2"]) == 0
    assert vars(asked[0]) | made_with == vars(asked[0])
    assert "2 sheets and forms of 5 cases out of 6 on demo-toy" in capsys.readouterr().out
    key = read_key(tmp_path / "human-study" / "key.json")
    assert key["runs"] == {run.system: run.id for run in runs}
    assert len(key["codes"]) == 2 * 5 * 3
    assert cli.main([*arguments, "--items", "7", "--folder", str(tmp_path / "x")]) == 2


def test_the_cells_are_empty_until_sheets_come_back_and_say_how_they_do(tmp_path: Path):
    with pytest.raises(Unavailable, match="python -m reprokit human export") as why:
        HUMAN.execute(job(tmp_path, "demo-toy"))
    assert "\n" not in str(why.value)
    folder = tmp_path / "human-study"
    export(cases(), folder, raters=2, items=3, about={"dataset": "demo-toy"})
    with pytest.raises(Unavailable, match="no rater's sheet is in"):
        HUMAN.execute(job(tmp_path, "demo-toy"))
    # A sheet without ratings, or without lines, is no rating.
    blank = (folder / "rater-01.csv").read_bytes()
    for content, why in ((blank, "9 lines without a rating"), (blank.split(b"\n")[0], "no line")):
        (folder / "returned" / "rater-01.csv").write_bytes(content)
        with pytest.raises(Unavailable, match=f"no usable line in the sheets: {why}") as told:
            HUMAN.execute(job(tmp_path, "demo-toy"))
        assert "\n" not in str(told.value)


def test_an_interval_from_few_draws_is_refused():
    with pytest.raises(ValueError, match=r"draws must be at least 100 .* got 0"):
        human.HumanSettings(draws=0)


def test_returned_sheets_fill_the_cells_and_more_sheets_change_the_fingerprint(study: Path):
    data_dir, prints = study.parent, []
    source = HUMAN_DATA["demo-human-study"]
    for name in ("rater-01.csv", "rater-02.csv"):
        prints.append(source.fingerprint(data_dir))
        fill(study, name)
    prints.append(source.fingerprint(data_dir))
    assert len(set(prints)) == 3
    for dataset in ("demo-toy", "demo-human-study"):
        result = HUMAN.execute(job(data_dir, dataset))
        assert result.metrics["usefulness/explainrec"] == 4.0
        assert result.metrics["raters"] == 2
        assert "2 raters of our own in place of the paper's 100 users" in result.deviations
        mine = result.predictions["human/systems"] == "narre"
        assert result.predictions["human/clarity"][mine].mean() == result.metrics["clarity/narre"]
    for dataset in ("toy", "human-study", "demo-other"):  # not what was rated
        with pytest.raises(Unavailable, match="is about demo-toy, not"):
            HUMAN.execute(job(data_dir, dataset))


def test_differences_between_systems_are_tested_and_corrected_together(study: Path):
    for number in (1, 2, 3):
        fill(study, f"rater-0{number}.csv")
    key = read_key(study / "key.json")
    report = human.analyse(read_sheets([study / "returned"], key), key, draws=50)
    pairs = [(one["criterion"], one["first"], one["second"]) for one in report["tests"]]
    assert pairs == [(c, a, b) for c in CRITERIA for a, b in combinations(SYSTEMS, 2)]
    assert [one["p_holm"] for one in report["tests"]] == holm([one["p"] for one in report["tests"]])
    first = report["tests"][0]
    assert (first["pairs"], first["difference"], first["effect"]) == (15, 2.0, 1.0)
    again = human.analyse(read_sheets([study / "returned"], key), key, draws=50)
    assert human.to_markdown(report) == human.to_markdown(again)
