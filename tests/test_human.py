"""The human study: blinded sheets out, returned ones read line by line, statistics, the cells."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_recommending import feedback

from reprokit import cli, human, rating_forms
from reprokit.agreement import Bootstrap, compare, holm, krippendorff
from reprokit.human import HUMAN, HUMAN_DATA, explaining_runs, read_key, read_sheets
from reprokit.plan import Plan, Request, Spot
from reprokit.progress import Progress
from reprokit.rating_forms import COLUMNS, CRITERIA, SYSTEMS, Case, export, shared_cases
from reprokit.runs import Job, RequestError, Result, Run, Store, Unavailable
from reprokit.tables import Table


def cases(count: int = 8) -> list[Case]:
    return [
        Case(
            f"user {n}",
            f"item {n}",
            f'Film "{n}", <b>the</b> first; &amp',
            (f"-Liked {n}", "Café Zoë"),
            {
                name: f"=Reason {at} of {n}: it's </script> good, \u201cso\u201d, they say"
                for at, name in enumerate(SYSTEMS)
            },
        )
        for n in range(count)
    ]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three raters, five cases."""
    folder = tmp_path / "human-study"
    about = {"dataset": "demo-toy", "preset": "demo", "runs": {}}
    export(cases(), folder, raters=3, items=5, about=about)
    return folder


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def truth(code: str, key: dict[str, Any]) -> tuple[int, int, int]:
    """What our raters think: ExplainRec is best; no person's opinion."""
    told = key["codes"][code]
    level = {"explainrec": 4, "tallrec": 2, "narre": 3}[told["system"]]
    bump = int(told["case"] in ("case-001", "case-003")) - int(told["sheet"].startswith("02"))
    return level, min(5, level + bump), max(1, level - bump)


def fill(folder: Path, name: str, separator: str = ",", mark: str = "") -> Path:
    """A returned sheet, as some spreadsheet writes it."""
    key = read_key(folder / "key.json")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter=separator, lineterminator="\r\n")
    writer.writeheader()
    for line in lines_of(folder / name):
        writer.writerow({**line, **dict(zip(CRITERIA, truth(line["code"], key), strict=True))})
    path = folder / "returned" / name
    path.write_bytes((mark + text.getvalue()).encode())
    return path


def damage(path: Path, number: int, change: Callable[[dict[str, str]], Any]) -> None:
    """Change a line, by its number in the file."""
    lines = lines_of(path)
    change(lines[number - 2])
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    path.write_bytes(text.getvalue().encode())


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


# --- what came back -----------------------------------------------------------------------------
def test_ratings_that_come_back_fill_the_table(study: Path, capsys: pytest.CaptureFixture[str]):
    for name, separator, mark in (("01", ",", ""), ("02", ";", "\ufeff"), ("03", "\t", "")):
        fill(study, f"rater-{name}.csv", separator, mark)
    out = study / "report"
    arguments = ["human", "analyse", str(study / "returned"), "--key", str(study / "key.json")]
    assert cli.main([*arguments, "--strict", "--out", str(out)]) == 0
    assert "3 of 3 raters" in capsys.readouterr().out
    report = json.loads((out / "human.json").read_text())
    key = read_key(study / "key.json")
    for at, criterion in enumerate(CRITERIA):
        for one in (m for m in report["means"] if m["criterion"] == criterion):
            given = [
                truth(c, key)[at] for c, t in key["codes"].items() if t["system"] == one["system"]
            ]
            assert one["n"] == 15 and one["mean"] == pytest.approx(np.mean(given))
            assert one["interval"][0] <= one["mean"] <= one["interval"][1]
    published = Table("explainrec/human", "").published
    rows = list(csv.reader(io.StringIO((out / "human.csv").read_text())))
    assert rows[0] == list(published.header)
    assert [row[0] for row in rows[1:]] == published.labels
    assert rows[1][1:] == ["4.00", "2.00", "3.00"]
    text = (out / "human.md").read_text()
    assert "4.2" in text and "alpha" in text and "Synthetic data" in text


def test_each_line_that_cannot_be_used_is_named_and_left_out(
    study: Path, capsys: pytest.CaptureFixture[str]
):
    path = fill(study, "rater-01.csv")
    lines = lines_of(path)
    damage(path, 2, lambda line: line.update(accuracy="6"))
    damage(path, 3, lambda line: line.update(clarity=""))
    damage(path, 4, lambda line: line.update(code="XXXXXX"))
    damage(path, 5, lambda line: line.update(explanation="Mine is better"))
    damage(path, 6, lambda line: line.update(lines[5]))  # line 7 once more, which then differs
    damage(path, 7, lambda line: line.update(usefulness="1"))
    damage(path, 8, lambda line: line.update(usefulness=" 4.0"))  # as a spreadsheet may show it
    damage(path, 9, lambda line: line.update(usefulness="four"))
    damage(path, 10, lambda line: line.update(sheet_id="02-AAAAAA"))
    arguments = ["human", "analyse", str(path), "--key", str(study / "key.json")]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().err.splitlines()
    first = f"reprokit: {path}, line"
    sheet = lines[0]["sheet_id"]
    assert said == [
        f"{first} 2: accuracy '6' is not 1 to 5",
        f"{first} 3: clarity missing",
        f"{first} 4: code 'XXXXXX' is not in the key",
        f"{first} 5: the history, the item or the explanation was changed",
        f"{first} 7: code {lines[5]['code']} is rated otherwise in {path}, line 6, which counts",
        f"{first} 9: usefulness 'four' is not 1 to 5",
        f"{first} 10: code {lines[8]['code']} belongs to sheet {sheet}, {lines[8]['case']}",
        f"reprokit: sheet {sheet}: 3 of its 15 lines are missing",
    ]
    report = json.loads((study / "human.json").read_text())
    assert (report["lines"], report["lines_left_out"]) == (8, 7)
    assert len(report["problems"]) == 8
    assert cli.main([*arguments, "--strict"]) == 2
    assert "--strict: 8 faults" in capsys.readouterr().err


def copy_of(path: Path, name: str, change: Callable[[int], dict[str, str]]) -> Path:
    """Another save of a returned sheet, each line changed by its index."""
    other = path.with_name(name)
    other.write_bytes(path.read_bytes())
    for at in range(len(lines_of(path))):
        damage(other, at + 2, lambda line, at=at: line.update(change(at)))
    return other


BLANK = dict.fromkeys(CRITERIA, "")


def test_a_sheet_that_comes_twice_counts_once_and_is_no_problem(study: Path):
    path = fill(study, "rater-01.csv")
    path.with_name("rater-01 (1).csv").write_bytes(path.read_bytes())
    reading = read_sheets([study / "returned"], read_key(study / "key.json"))
    assert len(reading.ratings) == 15
    assert (reading.problems, reading.left_out, reading.blank) == ([], 0, 0)


def test_an_early_save_with_blanks_does_not_block_the_complete_one(study: Path):
    path, key = fill(study, "rater-01.csv"), read_key(study / "key.json")
    alone = read_sheets([path], key)
    # Read first, by its name: one line half rated, one with a fault, and all the others blank.
    half = {**BLANK, "usefulness": lines_of(path)[3]["usefulness"]}
    saved = copy_of(path, "rater-01 (1).csv", lambda at: half if at == 3 else BLANK)
    both = read_sheets([study / "returned"], key)
    assert (both.ratings, both.problems, both.blank) == (alone.ratings, [], 0)
    damage(saved, 2, lambda line: line.update(clarity="9"))
    both = read_sheets([study / "returned"], key)
    assert both.ratings == alone.ratings
    assert both.problems == [f"{saved}, line 2: clarity '9' is not 1 to 5"]


def test_copies_whose_ratings_differ_are_named(study: Path):
    path, key = fill(study, "rater-01.csv"), read_key(study / "key.json")
    code, first = lines_of(path)[0]["code"], int(lines_of(path)[0]["usefulness"])
    late = {"usefulness": str(first % 5 + 1)}
    saved = copy_of(path, "rater-01-b.csv", lambda at: late if at == 0 else {})
    reading = read_sheets([study / "returned"], key)
    assert reading.places[code] == f"{saved}, line 2"  # first by name
    told = f"{path}, line 2: code {code} is rated otherwise in {saved}, line 2, which counts"
    assert (reading.problems, reading.left_out) == ([told], 1)


def test_lines_left_blank_on_a_sheet_that_was_answered_are_counted(study: Path):
    path, key = fill(study, "rater-01.csv"), read_key(study / "key.json")
    for number in (4, 5):
        damage(path, number, lambda line: line.update(BLANK))
    reading = read_sheets([path], key)
    sheet = lines_of(path)[0]["sheet_id"]
    assert reading.problems == [f"sheet {sheet}: 2 of its 15 lines are blank"]
    assert (len(reading.ratings), reading.left_out, reading.blank) == (13, 0, 2)


def test_the_blank_originals_beside_what_came_back_are_no_problem(study: Path):
    fill(study, "rater-01.csv")
    arguments = ["human", "analyse", str(study / "returned"), str(study)]
    for _ in range(2):  # the second time our own human.csv lies there too
        assert cli.main([*arguments, "--key", str(study / "key.json"), "--strict"]) == 0
    report = json.loads((study / "human.json").read_text())
    assert (report["raters"], report["lines"], report["lines_left_out"]) == (1, 15, 0)
    assert (report["lines_blank"], report["problems"]) == (30, [])


def test_a_sheet_in_a_spreadsheets_own_form_is_named_and_endings_have_no_case(
    study: Path,
):
    returned, key = study / "returned", read_key(study / "key.json")
    fill(study, "rater-01.csv").rename(returned / "rater-01.CSV")
    before = HUMAN_DATA["demo-human-study"].fingerprint(study.parent)
    (returned / "rater-02.XLSX").write_bytes(b"PK\x03\x04")
    assert before != HUMAN_DATA["demo-human-study"].fingerprint(study.parent)
    reading = read_sheets([returned], key)
    assert len(reading.ratings) == 15
    told = f"{returned / 'rater-02.XLSX'}: not CSV but .XLSX; save it as 'CSV UTF-8'"
    assert reading.problems == [told]
    (returned / "rater-01.CSV").unlink()
    with pytest.raises(Unavailable, match=r"no usable line in the sheets: .* save it as"):
        HUMAN.execute(job(study.parent, "demo-toy"))


def test_cases_that_nobody_rated_are_not_drawn_anew(study: Path):
    path, key = fill(study, "rater-01.csv"), read_key(study / "key.json")
    for number in range(8, 17):  # two cases of five are rated
        damage(path, number, lambda line: line.update(BLANK))
    reading = read_sheets([path], key)
    cube, _ = human.cube_of(reading, key)
    assert cube.shape == (1, 2, 3, 3) and not np.isnan(cube).any()
    assert human.analyse(reading, key, draws=100)["cases"] == 2


def test_no_cell_that_came_back_reaches_the_terminal_with_its_escape_sequences(
    study: Path, capsys: pytest.CaptureFixture[str]
):
    path = fill(study, "rater-01.csv")
    damage(path, 2, lambda line: line.update(code="\x1b[2Jgone\r\n\x07"))
    damage(path, 3, lambda line: line.update(accuracy="\x1b]0;title\x07\u202e5"))
    assert cli.main(["human", "analyse", str(path), "--key", str(study / "key.json")]) == 0
    said = capsys.readouterr()
    assert "code ' [2JGONE ' is not in the key" in said.err
    assert "accuracy ' ]0;title 5' is not 1 to 5" in said.err
    written = "".join((study / f"human.{kind}").read_text() for kind in ("md", "csv", "json"))
    for text in (said.err, said.out, written):
        assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not one column sheet_id"),
        (b"a,b\n1,2\n", "not one column"),
        ("sheet_id;Zo\u00eb".encode("latin-1"), "not in UTF-8"),
        ((",".join(COLUMNS) + "\n").encode(), "no usable line in the sheets"),
    ],
)
def test_nothing_usable_ends_with_status_2(
    study: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
):
    path = study / "returned" / "odd.csv"
    path.write_bytes(content)
    assert cli.main(["human", "analyse", str(path), "--key", str(study / "key.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (study / "human.csv").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "key.json is missing"),
        ("[1]", "is no key.json of `human export`"),
        ("{", "is no key.json of `human export`"),
        ('{"format": 1, "codes": {"A": {}}}', "is no key.json of `human export`"),
    ],
)
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str | None, message: str):
    path = tmp_path / "key.json"
    if key is not None:
        path.write_text(key)
    with pytest.raises(RequestError, match=re.escape(message)):
        read_key(path)


def test_a_sheet_that_does_not_exist_is_named(study: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["human", "analyse", "no.csv", "--key", str(study / "key.json")]) == 2
    assert "no.csv does not exist" in capsys.readouterr().err


# --- statistics ---------------------------------------------------------------------------------
# Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011: four observers, twelve units.
OBSERVERS = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
WORKED = np.array(
    [[np.nan if v == "." else float(v) for v in row.split()] for row in OBSERVERS.split("\n")[1:-1]]
)


@pytest.mark.parametrize(
    ("level", "alpha"),
    [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)],
)
def test_alpha_is_that_of_krippendorffs_worked_example(level: str, alpha: float):
    assert krippendorff(WORKED, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_ordered_ratings_is_that_of_loops_over_pairs():
    rng = np.random.default_rng(0)
    ratings = rng.integers(1, 6, (5, 20)).astype(float)
    ratings[rng.random(ratings.shape) < 0.3] = np.nan
    units = [column[~np.isnan(column)] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    every = np.concatenate(units)

    def distance(c: float, k: float) -> float:
        low, high = min(c, k), max(c, k)
        counts = [(every == g).sum() for g in range(int(low), int(high) + 1)]
        return (sum(counts) - (counts[0] + counts[-1]) / 2) ** 2

    observed = sum(
        distance(unit[i], unit[j]) / (len(unit) - 1)
        for unit in units
        for i in range(len(unit))
        for j in range(len(unit))
        if i != j
    )
    expected = sum(distance(a, b) for a in every for b in every) / (len(every) - 1)
    assert krippendorff(ratings, "ordinal") == pytest.approx(1 - observed / expected)


def test_alpha_is_not_defined_where_nothing_differs_or_nothing_pairs():
    assert krippendorff(np.full((3, 4), 5.0)) is None
    assert krippendorff(np.array([[1.0, np.nan], [np.nan, 2.0]])) is None
    assert krippendorff(np.full((2, 2), np.nan)) is None


def test_a_paired_test_is_scipys_over_the_pairs_that_both_rated():
    from scipy.stats import wilcoxon

    first = np.array([[5, 4, 4, np.nan, 3], [5, 3, 4, 2, 5]])
    second = np.array([[2, 4, 3, 1, np.nan], [1, 4, 2, 1, 2]])
    found = compare(first, second)
    a, b = np.array([5, 4, 4, 5, 3, 4, 2, 5.0]), np.array([2, 4, 3, 1, 4, 2, 1, 2.0])
    expected = wilcoxon(a, b)
    assert (found["p"], found["statistic"]) == (expected.pvalue, expected.statistic)
    assert (found["pairs"], found["differing"]) == (8, 7)
    # Differences 3, 1, 4, -1, 2, 1, 3: ranks 5.5, 2, 7, 2, 4, 2, 5.5, of which 2 is against.
    assert found["effect"] == pytest.approx((26 - 2) / 28)
    same = compare(first, first)
    assert (same["p"], same["effect"]) == (1.0, 0.0)


def test_holm_multiplies_the_least_p_most_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_an_interval_is_that_of_raters_and_cases_drawn_anew_one_by_one():
    rng = np.random.default_rng(1)
    values = rng.integers(1, 6, (6, 9)).astype(float)
    values[rng.random(values.shape) < 0.2] = np.nan
    boot = Bootstrap(6, 9, draws=400)
    drawn = []
    for raters, items in zip(boot.raters, boot.cases, strict=True):
        assert (raters.sum(), items.sum()) == (6, 9)
        drawn.append(np.nanmean(np.repeat(np.repeat(values, raters, 0), items, 1)))
    assert boot.interval(values) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert boot.interval(np.full((6, 9), np.nan)) is None


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


def run_of(system: str, dataset: str = "demo-toy", settings: Any = None) -> Run:
    settings = settings or human.HumanSettings()
    return Run("explainrec", system, dataset, settings, 0, "print")


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


def job(data_dir: Path, dataset: str) -> Job:
    return Job(run_of("human", dataset), data_dir, data_dir, 20.0, Progress(quiet=True))


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
