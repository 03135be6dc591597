"""What came back of the human study: each line that is read or named, and the statistics."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from human_study import damage, fill, job, lines_of, study, truth

from reprokit import cli, human
from reprokit.agreement import Bootstrap, compare, holm, krippendorff
from reprokit.human import HUMAN, HUMAN_DATA, read_key, read_sheets
from reprokit.rating_forms import COLUMNS, CRITERIA
from reprokit.runs import RequestError, Unavailable
from reprokit.tables import Table

__all__ = ["study"]  # the fixture


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
