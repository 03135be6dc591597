"""Blinded rating sheets of a human study: a CSV and an offline HTML form per rater, and the key.

Each rater rates every system's explanation of each case. On the sheets a code stands for the
explanation, another one on every sheet; what the codes mean stands in `key.json` alone. Cases, and
the explanations within a case, are in an order of each rater's own.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.runs import RequestError, atomic, digest

if TYPE_CHECKING:
    from reprokit.feedback import Feedback

SYSTEMS = {"explainrec": "ExplainRec", "tallrec": "TALLRec", "narre": "NARRE"}
"""The systems that explain, in the order of the published columns -> their headers."""
CRITERIA = {
    "usefulness": "Does it help to decide whether to take the recommendation?",
    "accuracy": "Does it fit the recommended title and what this person liked?",
    "clarity": "Is it easy to understand?",
}
"""What is rated from 1 to 5, in the published order -> what raters are asked. The paper names the
three and defines none: the questions are ours."""
SCALE = ("not at all", "a little", "partly", "mostly", "fully")
SHOWN = ("user_history", "item", "explanation")
COLUMNS = ("sheet_id", "case", "code", *SHOWN, *CRITERIA)
LETTERS = "BCDFGHJKLMNPQRSTVWXZ23456789"
"""Of a code: none that looks like another, and no vowel, lest a spreadsheet read 39E675 as a number
or 01-JULY22 as a date."""
FORMAT = 1
"""Of `key.json`."""


@dataclass(frozen=True)
class Case:
    """A recommendation and what each system says of it."""

    user: str
    item: str
    """The publisher's ids; they stand in the key alone."""
    title: str
    liked: tuple[str, ...]
    """Titles that the user liked before, oldest first."""
    texts: Mapping[str, str]
    """By system."""


def shared_cases(
    explained: Mapping[str, Mapping[str, np.ndarray]], data: Feedback, liked: int = 10
) -> list[Case]:
    """The (user, item) pairs that every system was asked to explain, in order of their ids.

    Args:
        explained: predictions by system, with the columns `explain/*`.
        liked: titles at most that a user liked before.
    """
    texts = {name: texts_of(columns) for name, columns in explained.items()}
    pairs = sorted(set.intersection(*(set(one) for one in texts.values())))
    users = {user: at for at, user in enumerate(data.user_ids)}
    items = {item: at for at, item in enumerate(data.item_ids)}
    return [
        Case(
            user,
            item,
            one_line(data.titles[items[item]]),
            liked_titles(data, users[user], items[item], liked),
            {name: one[user, item] for name, one in texts.items()},
        )
        for user, item in pairs
    ]


NOTHING = "(no explanation)"


def texts_of(columns: Mapping[str, np.ndarray]) -> dict[tuple[str, str], str]:
    """Explanations by (user, item), the first of each pair. A system that said nothing is rated for
    that."""
    names = ("explain/users", "explain/items", "explain/texts")
    found: dict[tuple[str, str], str] = {}
    for user, item, text in zip(*(columns[name].tolist() for name in names), strict=True):
        found.setdefault((str(user), str(item)), one_line(text) or NOTHING)
    return found


def liked_titles(data: Feedback, user: int, item: int, most: int) -> tuple[str, ...]:
    """What the user liked before the item was due; never a test event, nor the item itself."""
    events = np.arange(data.starts[user], data.starts[user + 1])
    own = events[data.items[events] == item]
    held_out = events[data.split[events] == 2]
    row = own[-1:] if len(own) else held_out[:1]
    if len(row):
        before = data.histories(row, most + 1, label=1)[0]
        before = before[before >= 0]
    else:
        before = events[data.labels[events] == 1]
    titles = [one_line(data.titles[at]) for at in data.items[before] if at != item]
    return tuple(titles[-most:])


def one_line(text: str) -> str:
    """Printable text with single spaces: what a model writes may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


# --- export -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    guarded: int
    """Lines with a cell that a spreadsheet might have read as a formula, a date or a number."""


def export(
    cases: Sequence[Case],
    folder: Path,
    raters: int = 10,
    items: int = 30,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a sheet and a form for each rater, their instructions, and the experimenter's key.

    Args:
        items: cases, drawn from all by the seed and the same for every rater; each rater rates
            every system's explanation of each.
        about: what the key says of the runs: `dataset`, `preset`, `runs`.

    Raises:
        RequestError: too few cases, or another study in the folder: its key is never written over.
    """
    if min(raters, items) < 1 or seed < 0:
        raise RequestError(
            f"a study needs a rater, a case and a seed from 0, got {raters}, {items} and {seed}"
        )
    if len(cases) < items:
        raise RequestError(
            f"{len(cases):,} cases are explained by all of {', '.join(SYSTEMS.values())}, "
            f"{items:,} are asked for: lower --items"
        )
    content = digest([[vars(case) for case in cases], items, seed])
    base = [seed, int(content[:12], 16)]  # other explanations have other codes
    drawn = np.random.default_rng([*base, 0]).choice(len(cases), items, replace=False)
    named = {f"case-{at:03d}": cases[i] for at, i in enumerate(sorted(drawn), 1)}
    codes: dict[str, dict[str, str]] = {}
    sheets: dict[str, dict[str, str]] = {}
    files, guarded = {"README.txt": INSTRUCTIONS.encode()}, 0
    for rater in range(1, raters + 1):
        rng = np.random.default_rng([*base, rater])
        number = f"{rater:0{max(2, len(str(raters)))}d}"
        sheet, name = f"{number}-{fresh_code(rng, codes)}", f"rater-{number}"
        rows = lay_out(sheet, named, rng, codes)
        lines = [[guard(cell) for cell in row] for row in rows]
        guarded += sum(line != row for line, row in zip(lines, rows, strict=True))
        own = {
            f"{name}.csv": sheet_bytes(lines),
            f"{name}.html": form(sheet, f"{name}.csv", rows, lines, named).encode(),
        }
        files |= own
        sheets[sheet] = {file: hashlib.sha256(own[file]).hexdigest() for file in own}
    key = {"format": FORMAT, "seed": seed, "systems": SYSTEMS, **(about or {})}
    facts = {
        name: {"user": case.user, "item": case.item, "title": case.title}
        for name, case in named.items()
    }
    place(folder, {**key, "cases": facts, "sheets": sheets, "codes": codes}, files)
    return Exported(folder, ("key.json", *files), guarded)


def fresh_code(rng: np.random.Generator, taken: Mapping[str, Any]) -> str:
    while True:
        code = "".join(LETTERS[at] for at in rng.integers(0, len(LETTERS), 6))
        if code not in taken and not code.isdigit():
            return code


def lay_out(
    sheet: str, cases: Mapping[str, Case], rng: np.random.Generator, codes: dict[str, Any]
) -> list[list[str]]:
    """The lines of a sheet in its rater's order; what the codes mean goes to `codes`."""
    rows = []
    names = list(cases)
    for at in rng.permutation(len(names)):
        case = cases[names[at]]
        for system in rng.permutation(list(SYSTEMS)).tolist():
            code = fresh_code(rng, codes)
            shown = [" | ".join(case.liked), case.title, case.texts[system]]
            codes[code] = {"sheet": sheet, "case": names[at], "system": system}
            codes[code]["content"] = content_of(shown)
            rows.append([sheet, names[at], code, *shown, *[""] * len(CRITERIA)])
    return rows


def content_of(cells: Sequence[str]) -> str:
    """A hash of what a rater reads, whether or not a spreadsheet took away `guard`'s mark or
    changed white space."""
    return digest([" ".join(cell.split()).removeprefix("'") for cell in cells])


def guard(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; nor for a number or a date: the title
    9/11 would be written back in another form."""
    taken = text.startswith(("=", "+", "-", "@")) or (text and not any(map(str.isalpha, text)))
    return f"'{text}" if taken else text


def sheet_bytes(lines: Sequence[Sequence[str]]) -> bytes:
    """With a byte order mark: spreadsheets then read UTF-8."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([COLUMNS, *lines])
    return text.getvalue().encode("utf-8-sig")


def place(folder: Path, key: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a study; the key last, since what it opens must stand."""
    path = folder / "key.json"
    text = json.dumps(key, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if path.is_file() and path.read_bytes() != text.encode():
        raise RequestError(
            f"{path} is the key of another study, without which its sheets mean nothing: choose "
            "another --folder, or move it away"
        )
    (folder / "returned").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with atomic(path) as file:
        file.write(text)


# --- what raters see ----------------------------------------------------------------------------
INSTRUCTIONS = """Rating explanations of recommendations

You see what a person liked before and a title that was recommended to that person, then three
explanations of that recommendation. Please rate every explanation on three scales from 1 to 5:

{questions}

1 is {low}, 5 is {high}. There are no right answers. Rate each explanation by itself: several may
deserve the same rating. Please work alone and talk about the explanations only when all have
rated.

Either open the .html file in a browser. It works without the internet, keeps what you have chosen
in that browser where it may, and its button saves your ratings as a .csv file. Or fill in the last
three columns of your .csv file with whole numbers from 1 to 5 and save it as CSV in UTF-8. Please
change nothing else in it. Return the .csv file to the person who gave you the sheet.

Your ratings are stored under the number of the sheet. No name is asked for.
""".format(
    questions="\n".join(f"- {name}: {question}" for name, question in CRITERIA.items()),
    low=SCALE[0],
    high=SCALE[-1],
)

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rating sheet $sheet</title>
<style>
html { scroll-padding: 1rem 0 8rem; }
body { font: 1.05rem/1.5 sans-serif; color: #1a1a1a; background: #fff; max-width: 46rem;
  margin: 0 auto; padding: 1rem 1rem 8rem; overflow-wrap: anywhere; }
article { border-left: 4px solid #5a6b7b; padding-left: 1rem; margin: 1.5rem 0; }
blockquote { margin: .5rem 0; font-weight: bold; }
fieldset { border: 0; margin: .8rem 0; padding: 0; min-width: 0; }
legend { padding: 0 0 .2rem; }
fieldset div { display: grid; grid-template-columns: repeat(5, 1fr); max-width: 32rem;
  border: 1px solid #8a8a8a; }
label { padding: .5rem .1rem; text-align: center; }
label:has(:checked) { background: #dbe7fb; }
label span { display: block; font-size: .85rem; line-height: 1.2; }
input, button { accent-color: #0b57d0; }
:focus-visible { outline: 3px solid #0b57d0; outline-offset: 2px; }
button { font: inherit; padding: .4rem 1rem; }
footer { position: fixed; inset: auto 0 0 0; background: #f2f2f2; border-top: 1px solid #8a8a8a;
  padding: .6rem 1rem; display: flex; flex-wrap: wrap; gap: .4rem .7rem; align-items: center; }
</style>
</head>
<body>
<main>
<h1>Rating sheet $sheet</h1>
<p>Each of the $cases recommendations below comes with three explanations. Rate every explanation
from 1 ($low) to 5 ($high) on three scales. Save your ratings with the button at the bottom of the
window and return the saved file.</p>
<noscript><p><strong>Saving needs JavaScript, which is off here: please fill in $file
instead.</strong></p></noscript>
<form id="form">
$sections
</form>
</main>
<footer><button type="button" id="save">Save ratings</button>
<button type="button" id="next" hidden>Next unrated</button>
<span id="told" role="status"></span></footer>
<script type="application/json" id="sheet">$data</script>
<script>
(function () {
  "use strict";
  var sheet = JSON.parse(document.getElementById("sheet").textContent);
  var form = document.getElementById("form"), told = document.getElementById("told");
  var next = document.getElementById("next");
  var place = "rating sheet " + sheet.id;
  function chosen() {
    var found = {};
    form.querySelectorAll("input:checked").forEach(function (one) { found[one.name] = one.value; });
    return found;
  }
  function open() {
    return Array.from(form.querySelectorAll("fieldset")).find(function (one) {
      return !one.querySelector("input:checked");
    });
  }
  function show(before) {
    next.hidden = !open();
    var done = Object.keys(chosen()).length, all = sheet.lines.length * sheet.criteria.length;
    told.textContent = before + done + " of " + all + " ratings given.";
  }
  function quoted(cell) { return '"' + String(cell).replace(/"/g, '""') + '"'; }
  function csv() {
    var given = chosen();
    var lines = sheet.lines.map(function (line) {
      return line.slice(0, line.length - sheet.criteria.length).concat(
        sheet.criteria.map(function (name) { return given[line[2] + "-" + name] || ""; }));
    });
    return [sheet.columns].concat(lines).map(function (line) {
      return line.map(quoted).join(",") + "\\r\\n";
    }).join("");
  }
  try {
    var kept = JSON.parse(localStorage.getItem(place) || "{}");
    form.querySelectorAll("input").forEach(function (one) {
      if (kept[one.name] === one.value) { one.checked = true; }
    });
  } catch (error) { /* the browser keeps nothing: the saved file does */ }
  form.addEventListener("change", function () {
    try { localStorage.setItem(place, JSON.stringify(chosen())); } catch (error) { /* the same */ }
    show("");
  });
  next.addEventListener("click", function () {
    var one = open();
    one.scrollIntoView({block: "center"});
    one.querySelector("input").focus({preventScroll: true});
  });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  document.getElementById("save").addEventListener("click", function () {
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\\ufeff" + csv()], {type: "text/csv"}));
    link.download = sheet.file;
    document.body.appendChild(link);
    link.click();
    link.remove();
    show("Saved as " + sheet.file + ". ");
  });
  show("");
})();
</script>
</body>
</html>
""")


def form(
    sheet: str,
    file: str,
    rows: Sequence[Sequence[str]],
    lines: Sequence[Sequence[str]],
    cases: Mapping[str, Case],
) -> str:
    """The same sheet as a page of its own, which loads nothing and saves `file`.

    Args:
        rows: texts as they are shown; lines: the same as they stand in the CSV.
    """
    per, sections = len(SYSTEMS), []
    for at in range(0, len(rows), per):
        name = rows[at][1]
        said = [(row[2], row[5]) for row in rows[at : at + per]]
        sections.append(section(at // per + 1, len(rows) // per, name, cases[name], said))
    content = {"id": sheet, "file": file, "columns": COLUMNS, "criteria": list(CRITERIA)}
    data = json.dumps({**content, "lines": lines}, ensure_ascii=False)
    return PAGE.substitute(
        sheet=escape(sheet),
        file=escape(file),
        cases=len(rows) // per,
        low=SCALE[0],
        high=SCALE[-1],
        sections="\n".join(sections),
        data=data.replace("<", "\\u003c"),  # no text ends the script
    )


def section(number: int, of: int, name: str, case: Case, said: Sequence[tuple[str, str]]) -> str:
    """A recommendation with its explanations."""
    liked = "".join(f"<li>{escape(title)}</li>" for title in case.liked)
    parts = [
        f'<section aria-labelledby="{name}">',
        f'<h2 id="{name}">Recommendation {number} of {of}</h2>',
        f"<p>This person liked:</p><ul>{liked}</ul>" if liked else "<p>No liked title known.</p>",
        f"<p>Recommended: <strong>{escape(case.title)}</strong></p>",
    ]
    for letter, (code, text) in zip("ABCDEFGHIJ", said, strict=False):
        parts += [
            f'<article aria-labelledby="{code}"><h3 id="{code}">Explanation {letter}</h3>',
            f"<blockquote>{escape(text)}</blockquote>",
            *(scale(f"{code}-{name}", name, question) for name, question in CRITERIA.items()),
            "</article>",
        ]
    return "\n".join([*parts, "</section>"])


def scale(field: str, name: str, question: str) -> str:
    """Five radio buttons."""
    choices = "".join(
        f'<label><input type="radio" name="{field}" value="{value}"> {value}'
        f"{f' <span>{word}</span>' if value in (1, len(SCALE)) else ''}</label>"
        for value, word in enumerate(SCALE, 1)
    )
    return f"<fieldset><legend>{name.title()}: {question}</legend><div>{choices}</div></fieldset>"
