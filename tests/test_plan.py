"""The frozen encoders of a request: options, identity of runs, and what is looked up where."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import empty_hub
from toys import Toy, make, request, toy, toy_request

from reprokit import ccf_llm, cli, forecasting, remarks, reproduce
from reprokit.data import Source
from reprokit.plan import Plan, downloads, models_of, plan
from reprokit.reproduce import DONE, INCOMPLETE
from reprokit.runs import Estimate, Job, RequestError, Result, Run, System, setting
from reprokit.tables import Column, Row, Table

__all__ = ["toy"]  # the fixture


@dataclass(frozen=True)
class ReaderSettings:
    llm: str = setting("planted", "a test")
    texts_by: str = setting("org/texts", "a test")
    images_by: str = setting("org/images", "a test")
    captions_by: str = setting("org/captions", "a test")
    parts: str = setting("llm,text,image", "a test")


@dataclass(frozen=True)
class PlainSettings:
    """No pretrained model in it."""


class Readers:
    """A table with a row that reads two encoders, one that reads texts alone, and one neither."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.asked: list[tuple[str, str, bool]] = []
        self.release = 1
        """Of the weights behind every name."""
        estimate = Estimate(10.0, 2e9, 3e6)
        self.systems = {
            "reader": System(
                ReaderSettings,
                self.execute,
                lambda settings, sizes: estimate,
                backbone="llm",
                encoders={"text": "texts_by", "image": "images_by", "caption": "captions_by"},
                reads=lambda settings: settings.parts.split(","),
            ),
            "plain": System(PlainSettings, self.execute, lambda settings, sizes: estimate),
        }
        rows = Row("A", "reader"), Row("B", "reader", {"parts": "text"}), Row("C", "plain")
        auc = Column("AUC", "test/auc", "ml-1m", definition="auc")
        self.table = Table("ccf_llm/figure9", "A toy", (auc,), rows)

    def execute(self, job: Job) -> Result:
        self.jobs.append(job)
        return Result({"test/auc": 0.6, "valid/auc": 0.6})

    def identify(
        self, name: str, kind: str, cache: Path | None = None, offline: bool = False
    ) -> str:
        self.asked.append((kind, name, offline))
        if name in ("tiny", "palette") or (name.startswith("org/") and not offline):
            return f"{name} {self.release}"
        what = "captioner" if kind == "caption" else f"{kind} encoder"
        raise RequestError(f"{what} '{name}': the hub was not reached")

    def identify_captioner(
        self, name: str, cache: Path | None = None, offline: bool = False
    ) -> str:
        return self.identify(name, "caption", cache, offline)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Readers:
    readers = Readers()
    monkeypatch.setattr(ccf_llm, "SYSTEMS", {**ccf_llm.SYSTEMS, **readers.systems})
    monkeypatch.setattr(ccf_llm, "TABLES", (readers.table,))
    monkeypatch.setattr("reprokit.encoders.identify_encoder", readers.identify)
    monkeypatch.setattr("reprokit.captions.identify_captioner", readers.identify_captioner)
    monkeypatch.setattr("reprokit.backbones.identify", lambda name, *_: f"{name}'s weights")
    monkeypatch.setattr(Source, "fingerprint", lambda *arguments: "f00d")
    monkeypatch.setattr("reprokit.plan.differences", lambda *arguments: ())
    return readers


def runs_of(planned: Plan) -> dict[str, Run]:
    """By label of the row; each has one."""
    return {spot.row.label: spot.runs[0] for spot in planned.spots if spot.row and spot.runs}


# --- identity -----------------------------------------------------------------------------------
def test_encoders_take_part_in_a_runs_identity_each_by_its_kind(readers: Readers, tmp_path: Path):
    runs = runs_of(plan(toy_request(tmp_path)))
    assert runs["A"].backbone == "llm planted; text org/texts 1; image org/images 1"
    assert runs["B"].backbone == "text org/texts 1"
    assert runs["C"].backbone == ""
    assert models_of(runs["B"]) == {"text": "org/texts"}


def test_other_weights_behind_the_same_name_make_another_run(readers: Readers, tmp_path: Path):
    one = runs_of(plan(toy_request(tmp_path)))
    readers.release = 2
    other = runs_of(plan(toy_request(tmp_path)))
    assert one["A"].settings == other["A"].settings
    assert one["A"].id != other["A"].id and one["B"].id != other["B"].id
    assert one["C"].id == other["C"].id


def test_one_name_is_looked_up_once_for_each_kind(readers: Readers, tmp_path: Path):
    plan(toy_request(tmp_path, text_encoder="tiny", image_encoder="tiny"))
    assert readers.asked == [("text", "tiny", False), ("image", "tiny", False)]


def test_a_language_model_alone_gives_the_ids_of_before_there_were_encoders(
    toy: Toy,
    tmp_path: Path,
):
    """Finished runs are found again: these ids were computed by the code of that time."""
    runs = runs_of(plan(toy_request(tmp_path, llm="tiny")))
    assert runs["A"].backbone == "print of tiny"
    assert {label: run.id for label, run in runs.items()} == {
        "A": "a5e5aab957cce23f40db",
        "B": "2c4adbe034457e2d59dc",
        "C": "b64223d73b8aeb586e84",
    }


# --- options ------------------------------------------------------------------------------------
def test_the_users_encoders_take_the_place_of_the_settings_own(readers: Readers, tmp_path: Path):
    wanted = toy_request(tmp_path, text_encoder="tiny", image_encoder="org/other", llm="none")
    planned = plan(wanted)
    run = runs_of(planned)["A"]
    assert run.settings == ReaderSettings("none", "tiny", "org/other")
    assert run.backbone == "llm none; text tiny 1; image org/other 1"
    assert {value for _, name, value, why in remarks.describe(planned, run)
            if why == "set by you"} == {"none", "tiny", "org/other"}  # fmt: skip
    assert make(wanted)[1] == DONE and len(readers.jobs) == 3


def test_a_setting_wins_over_the_option(readers: Readers, tmp_path: Path):
    chosen = {"text_encoder": "org/nowhere", "overrides": ("reader.texts_by=tiny",)}
    run = runs_of(plan(toy_request(tmp_path, **chosen)))["A"]
    assert (run.settings.texts_by, run.settings.images_by) == ("tiny", "org/images")


@pytest.mark.parametrize(
    ("target", "chosen", "message"),
    [
        ("llm_emf/table1", {"text_encoder": "tiny"}, "--text-encoder tiny: .* has a text encoder"),
        ("llm_emf/table1", {"image_encoder": "t"}, "--image-encoder t: .* has an image encoder"),
        ("ccf_llm/table3", {"text_encoder": "minilm"}, "no row of ccf_llm/table3 has a text"),
        ("llm_emf/table1", {"llm": "tiny"}, "--llm tiny: .* llm_emf/table1 has a language model"),
        ("llm_emf/table4", {"captioner": "blip2"}, "--captioner blip2: .* has a captioner"),
    ],
)
def test_an_option_that_no_row_reads_is_refused(
    target: str, chosen: dict[str, str], message: str, tmp_path: Path
):
    with pytest.raises(RequestError, match=message):
        plan(request(tmp_path, target, **chosen))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--text-encoder", "tinny"), "text encoder 'tinny' is unknown: use tiny, minilm, clip"),
        (("--image-encoder", "minilm"), "image encoder 'minilm' is unknown: use tiny, clip"),
        (("--text-encoder", "org/x", "--offline"), "'org/x': org/x is not in the hub cache"),
    ],
)
def test_an_encoder_that_cannot_be_had_ends_with_status_2_before_work_starts(
    option: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    empty_hub(tmp_path, monkeypatch)
    monkeypatch.setattr(reproduce, "execute", lambda *_: pytest.fail("work was started"))
    command = ["reproduce", "llm_emf/figure5", *option, "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
    assert not list((tmp_path / "out").glob("**/*.json"))


def test_rows_without_a_missing_encoder_are_made_and_the_others_say_why(
    readers: Readers, tmp_path: Path
):
    outcome, status = make(toy_request(tmp_path, text_encoder="nowhere"))
    assert (outcome.executed, status) == (1, INCOMPLETE)
    text = (tmp_path / "small/ccf_llm/figure9.md").read_text()
    assert "[1] text encoder 'nowhere': the hub was not reached" in text
    assert text.count("[1]") == 3  # two cells and their reason


# --- what is looked up --------------------------------------------------------------------------
def test_what_a_run_does_not_read_is_not_looked_up(readers: Readers, tmp_path: Path):
    plan(toy_request(tmp_path, rows=("B",), image_encoder="nowhere"))
    assert ("text", "org/texts", False) in readers.asked
    assert all(offline for kind, _, offline in readers.asked if kind == "image")
    planned = plan(toy_request(tmp_path, overrides=("reader.parts=text",)))
    assert {run.backbone for run in planned.wanted} == {"text org/texts 1", ""}


def test_a_system_that_names_no_parts_reads_all_that_it_has(readers: Readers):
    system = dataclasses.replace(readers.systems["reader"], reads=None)
    settings = ReaderSettings(parts="text")
    three = {"text": "org/texts", "image": "org/images", "caption": "org/captions"}
    assert system.pretrained(settings) == {"llm": "planted", **three}
    assert dataclasses.replace(system, backbone="").pretrained(settings) == three
    assert readers.systems["plain"].pretrained(PlainSettings()) == {}


def test_offline_and_cells_that_are_not_requested_ask_no_other_machine(
    readers: Readers, tmp_path: Path
):
    with pytest.raises(RequestError, match="text encoder 'org/texts': the hub was not reached"):
        plan(toy_request(tmp_path, rows=("A",), offline=True))
    assert all(offline for *_, offline in readers.asked)
    readers.asked.clear()
    planned = plan(toy_request(tmp_path, rows=("C",)))
    assert all(offline for *_, offline in readers.asked) and list(runs_of(planned)) == ["C"]


NAMES = {"llm": "llm", "text": "text_encoder", "image": "image_encoder", "caption": "captioner"}


@pytest.mark.parametrize(
    ("llm", "known"),
    [
        ("none", "none"),
        ("planted", "planted"),
        ("endpoint:some-model", "endpoint:some-model"),
        ("extractive", "extractive, recipe 1"),
    ],
)
def test_stand_ins_need_no_file_and_are_known_by_their_name(
    llm: str, known: str, readers: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    places = "encoders.identify_encoder", "captions.identify_captioner", "backbones.identify"
    for place in (*places, "sizes.download_bytes"):
        monkeypatch.setattr(f"reprokit.{place}", lambda *_: pytest.fail("looked up"))
    wanted = toy_request(
        tmp_path,
        overrides=("reader.parts=llm,text,image,caption",),
        **{**dict.fromkeys(NAMES.values(), "none"), "llm": llm},
        offline=True,
        dry_run=True,
    )
    planned = plan(wanted)
    assert runs_of(planned)["A"].backbone == (f"llm {known}; text none; image none; caption none")
    assert downloads(planned)[1:] == [] and planned.unreached == {}
    # With the parts set by the user, rows A and B are one run.
    assert [line.state for line in forecasting.forecast(planned)] == ["to make"] * 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [("caption", "extractive"), ("caption", "planted"), ("text", "palette"), ("image", "planted")],
)
def test_a_stand_in_of_another_kind_is_refused_before_anything_runs(
    kind: str, name: str, tmp_path: Path
):
    from reprokit.plan import Planner

    with pytest.raises(RequestError, match=f"'{name}'"):
        found = Planner(toy_request(tmp_path), {}).model(kind, name, ask=True)
        raise RequestError(found[1])


def test_a_demo_of_llm_emf_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    empty_hub(tmp_path, monkeypatch)
    planned = plan(request(tmp_path, "llm_emf/table4", seeds=1, offline=True, dry_run=True))
    assert downloads(planned) == []
    found = [run.pretrained for run in planned.wanted]
    assert [sorted(one) for one in found] == [
        [], ["text"], ["llm", "text"], ["image"], ["image", "text"], ["image", "llm", "text"]
    ]  # fmt: skip
    assert found[-1]["llm"] == "planted" and "tiny text encoder" in found[-1]["text"]


# --- captioners -----------------------------------------------------------------------------------
CAPTIONS = ("reader.parts=text,caption",)


def test_a_captioner_is_a_kind_of_its_own_named_by_its_option(readers: Readers, tmp_path: Path):
    own = runs_of(plan(toy_request(tmp_path, overrides=CAPTIONS)))["A"]
    assert own.backbone == "text org/texts 1; caption org/captions 1"
    assert ("caption", "org/captions", False) in readers.asked
    planned = plan(toy_request(tmp_path, captioner="org/other", overrides=CAPTIONS))
    run = runs_of(planned)["A"]
    assert (run.settings.captions_by, run.settings.images_by) == ("org/other", "org/images")
    assert run.backbone == "text org/texts 1; caption org/other 1" and run.id != own.id
    told = {(name, value): why for _, name, value, why in remarks.describe(planned, run)}
    assert told["captions_by", "org/other"] == "set by you"
    rule = runs_of(plan(toy_request(tmp_path, captioner="palette", overrides=CAPTIONS)))["A"]
    assert rule.backbone == "text org/texts 1; caption palette 1"


def test_a_dry_run_lists_a_captioner_that_is_not_here(readers: Readers, tmp_path: Path):
    chosen = {"captioner": "nowhere", "overrides": CAPTIONS, "rows": ("A",)}
    planned = plan(toy_request(tmp_path, dry_run=True, **chosen))
    assert downloads(planned)[1:] == [
        "nowhere (size not known): captioner 'nowhere': the hub was not reached"
    ]
    with pytest.raises(RequestError, match="captioner 'nowhere': the hub was not reached"):
        plan(toy_request(tmp_path, **chosen))


def test_a_dry_run_lists_a_captioner_that_the_first_run_would_fetch(
    readers: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    empty_hub(tmp_path, monkeypatch)
    wanted = toy_request(tmp_path, dry_run=True, overrides=CAPTIONS, rows=("A",))
    listed = "org/captions (size not known): by the first run that uses it"
    assert downloads(plan(wanted))[1:] == [listed]
    monkeypatch.setattr(readers, "identify", lambda *_: "hub x")
    blip2 = dataclasses.replace(wanted, captioner="blip2")
    assert downloads(plan(blip2))[1:] == ["blip2 (15.5 GB): by the first run that uses it"]
    assert downloads(plan(dataclasses.replace(wanted, captioner="palette")))[1:] == []
    monkeypatch.setattr("reprokit.encoders.on_this_machine", lambda source: tmp_path)
    assert downloads(plan(blip2))[1:] == []


def test_the_command_line_passes_the_captioner_on(
    readers: Readers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["reproduce", "ccf_llm/figure9", "--preset", "small", "--out", str(tmp_path)]
    options = ["--captioner", "nowhere", "--set", "reader.parts=caption", "--row", "A"]
    assert cli.main([*command, *options]) == 2
    assert "captioner 'nowhere': the hub was not reached" in capsys.readouterr().err


# --- another data set -----------------------------------------------------------------------------
@pytest.fixture
def movable(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> Readers:
    """The toy table can be made on amazon-book too; a second one has it as its own; a third one
    has neither."""
    plain = Row("D", "plain")
    first = dataclasses.replace(readers.table, rows=(plain,), others=("amazon-book",))
    own = Column("AUC", "test/auc", "amazon-book")
    second = dataclasses.replace(first, id="ccf_llm/figure8", columns=(own,))
    third = dataclasses.replace(first, id="ccf_llm/figure7", others=())
    monkeypatch.setattr(ccf_llm, "TABLES", (first, second, third))
    return readers


def test_a_data_set_among_the_others_takes_the_place_of_the_tables_own(
    movable: Readers, tmp_path: Path
):
    planned = plan(request(tmp_path, "ccf_llm", preset="small", seeds=1, dataset="amazon-book"))
    assert [table.instead for table in planned.tables] == ["amazon-book", "", ""]
    assert {run.dataset for run in planned.wanted} == {"amazon-book"}
    assert [spot.requested for spot in planned.spots] == [True, True, False]
    assert {spot.runs[0].id for spot in planned.spots[:2]} == {planned.wanted[0].id}  # one run
    demo = plan(toy_request(tmp_path, dataset="amazon-book", preset="demo"))
    assert {run.dataset for run in demo.wanted} == {"demo-amazon-book"}
    for chosen in ({"dataset": "ml-1m"}, {}):
        own = plan(toy_request(tmp_path, **chosen))
        assert own.tables[0].instead == "" and {run.dataset for run in own.wanted} == {"ml-1m"}


def test_an_unknown_data_set_is_told_the_others_too(movable: Readers, tmp_path: Path):
    known = "Did you mean 'amazon-book'.*These targets have: ml-1m, amazon-book"
    with pytest.raises(RequestError, match=known):
        plan(toy_request(tmp_path, dataset="amazon-boook"))


def test_downloads_are_those_of_the_data_set_that_is_asked_for(movable: Readers, tmp_path: Path):
    def missing(**chosen: str) -> list[str]:
        wanted = toy_request(tmp_path, data_dir=tmp_path, dry_run=True, **chosen)
        return [line.split()[0] for line in downloads(plan(wanted))]

    assert missing() == ["ml-1m"]
    assert missing(dataset="amazon-book") == ["amazon-book"]
    assert missing(dataset="amazon-book", preset="demo") == []


def test_a_second_data_set_and_instructions_are_downloads_too(tmp_path: Path):
    def missing(*overrides: str, target: str = "table3", **chosen: Any) -> list[str]:
        wanted = request(
            tmp_path, f"explainrec/{target}", preset="paper", data_dir=tmp_path, dry_run=True,
            offline=True, overrides=overrides, **chosen,
        )  # fmt: skip
        return [line.split()[0] for line in downloads(plan(wanted)) if " data fetch " in line]

    films, books = "ml-25m", "amazon-books-2014"
    assert missing(dataset="ml-25m-cross") == [films, books, "alpaca"]
    assert missing(dataset="ml-25m-cross", rows=("LightGCN",)) == [films, books]
    assert missing(dataset="ml-25m-cold", rows=("TALLRec",)) == [films, "alpaca"]
    assert missing("tallrec.stage1=none", rows=("TALLRec",)) == [films, books]
    assert missing(target="table4", rows=("TALLRec",)) == [films, "alpaca"]
    assert missing("tallrec.stage1=none", target="table4", rows=("TALLRec",)) == [films]
    (tmp_path / "amazon-2014").mkdir()
    for name in ("reviews_Books_5.json.gz", "meta_Books.json.gz"):
        (tmp_path / "amazon-2014" / name).touch()
    assert missing(dataset="ml-25m-cross", rows=("LightGCN",)) == [films]


@pytest.fixture
def homely(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> Readers:
    """Two columns on ml-1m, one of a part of it, and one on amazon-book; others stand in for
    ml-1m alone."""
    films = ccf_llm.DATASETS["amazon-book"]
    names = ("ml-1m-cold", "ml-tiny", "ml-tiny-cold")
    more = {f"{demo}{name}": films for name in names for demo in ("", "demo-")}
    monkeypatch.setattr(ccf_llm, "DATASETS", {**ccf_llm.DATASETS, **more})
    columns = (
        Column("AUC", "test/auc", "ml-1m"),
        Column("Valid", "valid/auc", "ml-1m"),
        Column("Cold", "test/auc", "ml-1m-cold"),
        Column("Books", "test/auc", "amazon-book"),
    )
    table = dataclasses.replace(
        readers.table,
        columns=columns,
        rows=(Row("D", "plain"),),
        others=("ml-tiny",),
        home="ml-1m",
    )
    monkeypatch.setattr(ccf_llm, "TABLES", (table,))
    return readers


def test_a_data_set_with_parts_is_asked_for_with_all_of_them(homely: Readers, tmp_path: Path):
    def asked(dataset: str) -> dict[str, str]:
        planned = plan(toy_request(tmp_path, dataset=dataset))
        return {spot.name: spot.runs[0].dataset for spot in planned.spots if spot.requested}

    whole = {"AUC": "ml-1m", "Valid": "ml-1m", "Cold": "ml-1m-cold"}
    assert asked("ml-1m") == whole
    assert asked("ml-1m-cold") == {"Cold": "ml-1m-cold"}
    assert asked("") == {**whole, "Books": "amazon-book"}
    assert asked("ml-tiny") == {"AUC": "ml-tiny", "Valid": "ml-tiny", "Cold": "ml-tiny-cold"}
    with pytest.raises(RequestError, match="These targets have: ml-1m, ml-1m-cold, amazon-book"):
        plan(toy_request(tmp_path, dataset="ml"))


def test_a_demo_on_a_data_set_without_synthetic_data_is_a_wrong_request(
    homely: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert plan(toy_request(tmp_path, dataset="ml-tiny", preset="demo")).wanted
    known = {name: one for name, one in ccf_llm.DATASETS.items() if name != "demo-ml-tiny-cold"}
    monkeypatch.setattr(ccf_llm, "DATASETS", known)
    with pytest.raises(RequestError, match="--dataset ml-tiny: the demo preset has no synthetic"):
        plan(toy_request(tmp_path, dataset="ml-tiny", preset="demo"))
    assert plan(toy_request(tmp_path, dataset="ml-tiny")).wanted


def test_what_a_data_set_does_not_stand_in_for_is_left_out_even_where_its_runs_are_kept(
    homely: Readers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert make(toy_request(tmp_path))[1] == DONE
    assert len(homely.jobs) == 3
    wanted = toy_request(tmp_path, dataset="ml-tiny")
    assert make(wanted)[1] == DONE
    assert [job.run.dataset for job in homely.jobs[3:]] == ["ml-tiny", "ml-tiny-cold"]
    folder = tmp_path / "small/ccf_llm"
    assert (folder / "figure9.csv").read_text().splitlines()[1] == "D,0.6000,0.6000,0.6000,0.6000"
    found = (folder / "figure9-ml-tiny.csv").read_text().splitlines()
    assert found == ["Variant,AUC,Valid,Cold,Books", "D,0.6000,0.6000,0.6000,"]
    text = (folder / "figure9-ml-tiny.md").read_text()
    assert text.startswith("# ccf_llm/figure9: A toy, on ml-tiny\n")
    assert "\n[1] not requested" in text
    assert "- **Note**: Cold: made on ml-tiny-cold in place of ml-1m-cold\n" in text
    assert "- **Note**: Books: left out, since ml-tiny does not stand in for amazon-book" in text
    assert json.loads((folder / "figure9-ml-tiny.json").read_text())["missing"] == []
    options = ["--preset", "small", "--seeds", "1", "--out", str(tmp_path), "--dataset", "ml-tiny"]
    assert cli.main(["reproduce", "ccf_llm/figure9", *options]) == DONE
    assert "note: AUC, Valid: made on ml-tiny in place of ml-1m" in capsys.readouterr().out
    cli.main(["list", "--out", str(tmp_path)])
    line = next(row for row in capsys.readouterr().out.splitlines() if "figure9" in row)
    assert "| ml-1m, ml-1m-cold, amazon-book, (ml-tiny) " in line
    assert "small 4/4 cells, small on ml-tiny 3/4 cells" in line


def test_a_dry_run_names_what_to_download_of_the_parts_once(homely: Readers, tmp_path: Path):
    def missing(dataset: str) -> list[str]:
        wanted = toy_request(tmp_path, data_dir=tmp_path, dry_run=True, dataset=dataset)
        return [line.split()[0] for line in downloads(plan(wanted))]

    assert missing("ml-tiny") == ["amazon-book"]  # what its toy parts are read from
    assert missing("") == ["ml-1m", "amazon-book"]


# --- blank columns ------------------------------------------------------------------------------
def test_a_row_has_its_own_columns_and_no_others(
    readers: Readers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    columns = Column("AUC", "test/auc", "ml-1m"), Column("BLEU", "test/bleu", "ml-1m")
    rows = Row("D", "plain", columns=("AUC",)), Row("E", "plain")
    ours = (Row("F", "plain", columns=("AUC",)),)
    table = dataclasses.replace(readers.table, columns=columns, rows=rows, sanity=ours)
    monkeypatch.setattr(ccf_llm, "TABLES", (table,))
    planned = plan(toy_request(tmp_path))
    blank = {(spot.row.label, spot.name) for spot in planned.spots if spot.blank and spot.row}
    assert blank == {("D", "BLEU"), ("F", "BLEU")}
    assert make(toy_request(tmp_path, rows=("D",)))[1] == DONE  # nothing of it is missing
    assert make(toy_request(tmp_path))[1] == INCOMPLETE  # E has no BLEU
    folder = tmp_path / "small/ccf_llm"
    assert (folder / "figure9.csv").read_text().splitlines()[1:] == ["D,0.6000,", "E,0.6000,"]
    text = (folder / "figure9.md").read_text()
    assert "| D        | 0.6000 |      |" in text and "| E        | 0.6000 | [1]  |" in text
    assert text.count("no test/bleu") == 1
    assert json.loads((folder / "figure9.json").read_text())["cells"] == {"filled": 2, "of": 3}


# --- dry runs -----------------------------------------------------------------------------------
def test_a_dry_run_goes_on_without_encoders_and_lists_them(readers: Readers, tmp_path: Path):
    planned = plan(toy_request(tmp_path, offline=True, dry_run=True))
    assert downloads(planned)[1:] == [
        f"org/{kind}s (size not known): {kind} encoder 'org/{kind}s': the hub was not reached"
        for kind in ("text", "image")
    ]
    lines = forecasting.forecast(planned)
    assert [line.state for line in lines] == ["needs model", "needs model", "to make"]
    assert not list(tmp_path.iterdir()) and not readers.jobs
    planned = plan(toy_request(tmp_path, dry_run=True))
    assert downloads(planned)[1:] == []
    assert [line.state for line in forecasting.forecast(planned)] == ["to make"] * 3


def test_the_terminal_lists_an_unknown_encoder_under_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    empty_hub(tmp_path, monkeypatch)
    options = ["--text-encoder", "tinny", "--seeds", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["reproduce", "llm_emf/table4", *options, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    listed = shown.partition("Downloads needed first: ")[2]
    assert listed.startswith("tinny (size not known): text encoder 'tinny' is unknown")
    assert shown.count("needs model") == 4 and not (tmp_path / "out").exists()
