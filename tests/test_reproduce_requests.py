"""What may be asked for: targets and rows, settings, another data set, a language model."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from toys import QUICK, Toy, make, request, toy, toy_request, write_ml_1m

from reprokit import ccf_llm, cli, forecasting, remarks, reproduce
from reprokit.data import Source
from reprokit.datasets import DataError
from reprokit.plan import all_tables, downloads, pick_rows, plan, resolve
from reprokit.reproduce import DONE, INCOMPLETE
from reprokit.runs import RequestError
from reprokit.tables import Column, Row

__all__ = ["toy"]  # the fixture


# --- targets and requests -------------------------------------------------------------------------


def test_table3_means_every_papers_table_3():
    assert [table.id for table in resolve(["table3"])] == [
        "ccf_llm/table3",
        "explainrec/table3",
        "llm_emf/table3",
    ]
    assert resolve(["all"]) == all_tables()
    assert len(resolve(["ccf_llm", "ccf_llm/table3"])) == 8


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"targets": ("ccf_llm/tabel3",)}, "Did you mean 'ccf_llm/table3'.*reprokit list"),
        ({"preset": "smal"}, "Did you mean 'small'"),
        ({"dataset": "ml1m"}, "Did you mean 'ml-1m'.*ml-1m, amazon-book"),
        ({"rows": ("LihgtGCN",)}, "no row 'LihgtGCN'.*Did you mean 'LightGCN'"),
        (
            {"rows": ("Amazon-Books",), "dataset": "ml-1m", "targets": ("ccf_llm/table1",)},
            "--row Amazon-Books has no cell on ml-1m",
        ),
        ({"overrides": ("mf.lr",)}, "expected system.key=value"),
        ({"overrides": ("mff.lr=1",)}, "no system 'mff'. Did you mean 'mf'"),
        ({"overrides": ("mf.lrr=1",)}, "mf has no setting 'lrr'. Did you mean 'lr'"),
        ({"overrides": ("mf.dim=ten",)}, "'ten' is not of type int"),
        ({"overrides": ("sasrec.heads=3",)}, "heads must divide dim"),
        ({"overrides": ("sasrec.dropout=1.5",)}, "dropout is out of range"),
        ({"overrides": ("mf.lr=nan",)}, "lr is out of range"),
        ({"overrides": ("mf.lr=1",), "targets": ("ccf_llm/table1",)}, "no system 'mf'"),
        ({"overrides": ("mf.dim=-1",)}, "settings of mf on ml-1m: dim is out of range, got -1"),
    ],
)
def test_a_wrong_request_says_what_and_what_to_do(
    chosen: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(RequestError, match=message):
        plan(dataclasses.replace(request(tmp_path), **chosen))


def test_data_that_no_cell_can_do_without_are_a_wrong_request(tmp_path: Path):
    with pytest.raises(DataError, match=r"ratings\.dat is missing.*data fetch ml-1m"):
        plan(request(tmp_path, preset="small", dataset="ml-1m", data_dir=tmp_path))


def test_data_that_only_some_cells_need_leave_those_empty_with_the_reason(tmp_path: Path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::1::5::994556598\n")
    (folder / "movies.dat").write_text("1::A::B\n")
    planned = plan(request(tmp_path, preset="small", data_dir=tmp_path, rows=("MF",)))
    reasons = {spot.reason for spot in planned.spots if spot.name == "Amazon-Book AUC"}
    assert any("Books_5.json" in reason and "missing" in reason for reason in reasons)
    assert all(run.dataset == "ml-1m" for run in planned.wanted)


def test_files_of_another_size_than_published_are_noted(tmp_path: Path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::1::5::994556598\n")
    (folder / "movies.dat").write_text("1::A::B\n")
    wanted = request(tmp_path, preset="small", dataset="ml-1m", data_dir=tmp_path, rows=("MF",))
    planned = plan(wanted)
    assert "publisher's file 24,594,131" in planned.notes["ml-1m"][0]


def test_data_that_changed_between_two_commands_of_one_process_are_read_again(tmp_path: Path):
    wanted = request(tmp_path, "ccf_llm/table1", preset="small", dataset="ml-1m", data_dir=tmp_path)
    for users in (5, 9):
        write_ml_1m(tmp_path / "ml-1m", users)
        make(wanted)
        with (tmp_path / "small/ccf_llm/table1.csv").open() as file:
            assert next(csv.DictReader(file))["User"] == str(users + 1)


def test_data_outside_the_request_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_ml_1m(tmp_path / "ml-1m")
    (tmp_path / "amazon-2018").mkdir()
    for name in ("Books_5.json", "meta_Books.json"):
        (tmp_path / "amazon-2018" / name).write_text("")
    read: list[str] = []
    real = Source.fingerprint

    def watched(self: Any, data_dir: Path, cache: Path, reads: bool, keep: bool) -> str:
        if reads:
            read.append(self.registered)
        return real(self, data_dir, cache, reads, keep)

    monkeypatch.setattr(Source, "fingerprint", watched)
    chosen: dict[str, Any] = {"preset": "small", "dataset": "ml-1m", "data_dir": tmp_path}
    plan(request(tmp_path, rows=("MF",), **chosen))
    assert read == ["ml-1m"]
    row = ("MovieLens-1M",)
    plan(request(tmp_path, "ccf_llm/table1", preset="small", rows=row, data_dir=tmp_path))
    assert read == ["ml-1m", "ml-1m"]


def test_a_dry_run_lists_what_to_download_and_writes_nothing(tmp_path: Path):
    wanted = request(tmp_path, preset="small", data_dir=tmp_path, rows=("MF",), dry_run=True)
    planned = plan(wanted)
    assert downloads(planned)[0].startswith("ml-1m (6 MB): python -m reprokit data fetch")
    assert len(downloads(planned)) == 2
    lines = forecasting.forecast(planned)
    assert len(lines) == 24 and all(line.needs_data and line.seconds for line in lines)
    write_ml_1m(tmp_path / "ml-1m")
    planned = plan(wanted)
    assert len(downloads(planned)) == 1
    assert {line.needs_data for line in forecasting.forecast(planned)} == {True, False}
    assert [path.name for path in tmp_path.iterdir()] == ["ml-1m"]


def test_a_row_is_picked_by_its_exact_label_else_by_a_part_of_it(tmp_path: Path):
    def labels(*texts: str) -> set[str]:
        return {label for _, label in pick_rows(texts, resolve(["ccf_llm/table3"]))}

    assert labels("mf") == {"MF"}
    assert labels("collm (") == {"CoLLM (MF)", "CoLLM (LightGCN)", "CoLLM (SASRec)", "CoLLM (Best)"}
    assert labels("random") == {"Random"}
    planned = plan(request(tmp_path, **QUICK))
    assert {run.system for run in planned.wanted} == {"mf", "random", "like-rate", "bias-only"}


def test_our_own_rows_run_along_but_none_with_a_language_model_unless_asked_for(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ours = (Row("Cheap", "other"), Row("Costly", "toy", {"depth": 9}))
    monkeypatch.setattr(ccf_llm, "TABLES", (dataclasses.replace(toy.table, sanity=ours),))

    def requested(*rows: str) -> set[str]:
        planned = plan(toy_request(tmp_path, rows=rows))
        return {spot.row.label for spot in planned.spots if spot.requested and spot.row}

    assert requested() == {"A", "B", "C", "Cheap", "Costly"}
    assert requested("C") == {"C", "Cheap"}
    assert requested("costly") == {"Cheap", "Costly"}


def test_settings_of_the_user_change_the_run_and_show_in_the_table(tmp_path: Path):
    plain = plan(request(tmp_path, **QUICK))
    changed = plan(request(tmp_path, **QUICK, overrides=("mf.dim=4", "mf.max_epochs=2")))
    ids = [{run.id for run in one.wanted if run.system == "mf"} for one in (plain, changed)]
    assert not ids[0] & ids[1]
    run = next(run for run in changed.wanted if run.system == "mf")
    lines = {name: (value, why) for _, name, value, why in remarks.describe(changed, run)}
    assert lines["dim"] == ("4", "set by you")
    assert lines["lr"] == ("0.01", "for demo: small, for a minute on a laptop")
    assert lines["init_std"][1].startswith("open; unit-normal tables")


def test_shards_split_the_runs_without_overlap(tmp_path: Path):
    whole = {run.id for run in plan(request(tmp_path)).wanted}
    parts = [{run.id for run in plan(request(tmp_path, shard=(i, 3))).wanted} for i in (1, 2, 3)]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole) > 3


def test_a_preset_is_not_part_of_a_runs_identity():
    """Two presets that choose the same settings share the run: identity is what decides."""
    system = ccf_llm.SYSTEMS["bias-only"]
    small, paper = (system.configure("ml-1m", preset, {}) for preset in ("small", "paper"))
    assert small == paper
    assert ccf_llm.SYSTEMS["sasrec"].configure("ml-1m", "paper", {}).max_epochs == 1000


# --- another data set than the paper's ------------------------------------------------------------


def moved(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **chosen: Any
) -> dict[str, bytes]:
    """Make the toy table on a data set that the paper does not use; its files by name."""
    table = dataclasses.replace(toy.table, others=("amazon-book",))
    monkeypatch.setattr(ccf_llm, "TABLES", (table,))
    _, status = make(toy_request(tmp_path, **{"dataset": "amazon-book", **chosen}))
    assert status == DONE
    return {path.name: path.read_bytes() for path in tmp_path.glob("*/ccf_llm/*")}


def test_a_table_on_another_data_set_has_files_of_its_own_and_says_on_what_it_was_made(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = moved(toy, tmp_path, monkeypatch, dataset="")
    found = moved(toy, tmp_path, monkeypatch)
    kinds = (".csv", ".md", ".compare.csv", ".json", ".png")
    assert set(own) == {f"figure9{kind}" for kind in kinds}
    assert set(found) - set(own) == {f"figure9-amazon-book{kind}" for kind in kinds}
    assert {name: found[name] for name in own} == own
    assert {job.run.dataset for job in toy.jobs[3:]} == {"amazon-book"}
    text = found["figure9-amazon-book.md"].decode()
    assert text.startswith("# ccf_llm/figure9: A toy, on amazon-book\n")
    assert "![A toy](figure9-amazon-book.png)" in text
    assert "not comparable with the paper: A, B, C: another data set than the paper's" in text
    told = json.loads(found["figure9-amazon-book.json"])
    assert (told["target"], told["instead"]) == ("ccf_llm/figure9", "amazon-book")
    assert json.loads(found["figure9.json"])["instead"] == ""
    compared = found["figure9-amazon-book.compare.csv"].decode().splitlines()
    reasons = {row["verdict"]: row["reason"] for row in csv.DictReader(compared)}
    assert reasons == {"not comparable": "another data set than the paper's"}


def test_a_demo_on_another_data_set_runs_on_its_stand_in(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = moved(toy, tmp_path, monkeypatch, preset="demo")
    assert {job.run.dataset for job in toy.jobs} == {"demo-amazon-book"}
    text = found["figure9-amazon-book.md"].decode()
    assert text.startswith("# ccf_llm/figure9: A toy, on demo-amazon-book\n")
    compared = found["figure9-amazon-book.compare.csv"].decode()
    assert "synthetic data, another data set than the paper's" in compared


def test_list_and_the_terminal_name_another_data_set(
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    moved(toy, tmp_path, monkeypatch)
    assert cli.main(["list", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    (line,) = (line for line in shown.splitlines() if "figure9" in line)
    assert "| ml-1m, (amazon-book) " in line and "| small on amazon-book 3/3 cells |" in line
    assert "In brackets: data sets that the paper does not use, with --dataset." in shown
    command = ["reproduce", "ccf_llm/figure9", "--preset", "small", "--seeds", "1"]
    assert cli.main([*command, "--dataset", "amazon-book", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\nccf_llm/figure9: A toy, on amazon-book\n" in shown and "Runs: 0 made, 3 kept" in shown
    assert f"picture: {tmp_path / 'small/ccf_llm/figure9-amazon-book.png'}" in shown


def test_a_table_of_which_no_cell_is_requested_is_left_as_it_is(
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Without its own data at hand it would be written anew with empty cells."""
    other = dataclasses.replace(
        toy.table,
        id="ccf_llm/figure8",
        columns=(Column("AUC", "test/auc", "amazon-book", definition="auc"),),
    )
    monkeypatch.setattr(ccf_llm, "TABLES", (toy.table, other))
    assert make(request(tmp_path, "ccf_llm", preset="small", seeds=1))[1] == DONE
    path = tmp_path / "small/ccf_llm/figure9.md"
    kept = path.read_bytes()
    monkeypatch.setattr(
        Source, "fingerprint", lambda self, *_: self.registered[:6] * ("z" in self.registered)
    )
    wanted = request(tmp_path, "ccf_llm", preset="small", seeds=1, dataset="amazon-book")
    planned = plan(wanted)
    rendered, status = reproduce.assemble(planned, reproduce.execute(planned, quiet=True))
    assert [one.table.id for one in rendered] == ["ccf_llm/figure8"] and status == DONE
    assert path.read_bytes() == kept
    command = ["reproduce", "ccf_llm", "--preset", "small", "--seeds", "1"]
    assert cli.main([*command, "--dataset", "amazon-book", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Left as they are, since no cell of theirs is requested: ccf_llm/figure9." in said
    assert "ccf_llm/figure9: A toy" not in said


# --- systems with a language model ----------------------------------------------------------------


def test_the_language_model_is_part_of_a_runs_identity_and_looked_up_once(toy: Toy, tmp_path: Path):
    planned = plan(toy_request(tmp_path, seeds=3))
    assert toy.asked == [("org/large", False)]
    assert {run.backbone for run in planned.wanted} == {"print of org/large", ""}
    assert len(planned.wanted) == 9


def test_the_users_language_model_is_used_and_told_but_marks_no_row(toy: Toy, tmp_path: Path):
    _, status = make(toy_request(tmp_path, llm="tiny"))
    assert status == DONE
    text = (tmp_path / "small/ccf_llm/figure9.md").read_text()
    assert "| toy    | llm     | tiny  | set by you |" in text
    assert "settings changed" not in text and "| A *" not in text
    assert "not comparable with the paper: A, B: tiny in place of org/large" in text
    with (tmp_path / "small/ccf_llm/figure9.compare.csv").open() as file:
        found = {row["row"]: row["verdict"] for row in csv.DictReader(file)}
    assert found == {"A": "not comparable", "B": "not comparable", "C": "not printed"}


def test_a_setting_wins_over_the_users_language_model_and_marks_its_rows(toy: Toy, tmp_path: Path):
    make(toy_request(tmp_path, llm="org/nowhere", overrides=("toy.llm=tiny",)))
    assert toy.asked == [("tiny", False)]
    assert (
        "A: settings changed with --set: llm=tiny"
        in (tmp_path / "small/ccf_llm/figure9.md").read_text()
    )


def test_a_language_model_for_rows_that_have_none_is_a_wrong_request(tmp_path: Path):
    with pytest.raises(RequestError, match="--llm tiny: no row of ccf_llm/table1 has a language"):
        plan(request(tmp_path, "ccf_llm/table1", llm="tiny"))


def test_a_model_that_cannot_be_found_leaves_its_cells_empty_with_the_reason(
    toy: Toy, tmp_path: Path
):
    outcome, status = make(toy_request(tmp_path, llm="org/nowhere"))
    assert (outcome.executed, status) == (1, INCOMPLETE)  # C needs none
    text = (tmp_path / "small/ccf_llm/figure9.md").read_text()
    assert "[1] language model 'org/nowhere': the hub was not reached" in text


def test_a_model_that_no_cell_can_do_without_is_a_wrong_request(toy: Toy, tmp_path: Path):
    with pytest.raises(RequestError, match="'org/nowhere': the hub was not reached"):
        plan(toy_request(tmp_path, llm="org/nowhere", rows=("A",)))


def test_offline_is_passed_on(toy: Toy, tmp_path: Path):
    with pytest.raises(RequestError, match="'org/large': the hub was not reached"):
        plan(toy_request(tmp_path, rows=("A",), offline=True))
    assert toy.asked == [("org/large", True)]


def test_cells_that_are_not_requested_ask_no_other_machine(toy: Toy, tmp_path: Path):
    make(toy_request(tmp_path, llm="tiny"))
    toy.asked.clear()
    make(toy_request(tmp_path, llm="tiny", rows=("C",)))
    assert toy.asked == [("tiny", True)]
    with (tmp_path / "small/ccf_llm/figure9.csv").open() as file:
        assert all(row["AUC"] for row in csv.DictReader(file))  # what is finished still shows
    planned = plan(toy_request(tmp_path, rows=("C",)))
    reasons = {spot.row.label: spot.reason for spot in planned.spots if spot.row}
    assert reasons == {"A": "not requested", "B": "not requested", "C": ""}


def test_what_a_requested_cell_looks_up_serves_the_cells_before_it(toy: Toy, tmp_path: Path):
    planned = plan(toy_request(tmp_path, rows=("B",)))
    assert toy.asked == [("org/large", False)]
    assert [len(spot.runs) for spot in planned.spots] == [1, 1, 1]
    assert [run.settings.depth for run in planned.wanted] == [2]


def test_a_dry_run_lists_the_models_to_download_and_still_forecasts(toy: Toy, tmp_path: Path):
    planned = plan(toy_request(tmp_path, offline=True, dry_run=True))
    assert downloads(planned)[1:] == [
        "org/large (13.5 GB): language model 'org/large': the hub was not reached"
    ]
    lines = forecasting.forecast(planned)
    assert [line.state for line in lines] == ["needs model", "needs model", "to make"]
    assert all(line.estimate and line.seconds == 10 for line in lines)
    planned = plan(toy_request(tmp_path, dry_run=True))
    assert downloads(planned)[1:] == ["org/large (13.5 GB): by the first run that uses it"]
    assert [line.state for line in forecasting.forecast(planned)] == ["to make"] * 3
    assert not list(tmp_path.iterdir())


def test_a_model_of_unknown_size_does_not_end_a_dry_run(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unknown(*arguments: Any) -> Any:
        raise RequestError("its size is not known")

    changed = dataclasses.replace(toy.systems["toy"], estimate=unknown)
    monkeypatch.setitem(ccf_llm.SYSTEMS, "toy", changed)  # type: ignore[arg-type]
    monkeypatch.setattr("reprokit.sizes.download_bytes", unknown)
    planned = plan(toy_request(tmp_path, dry_run=True))
    assert [line.seconds for line in forecasting.forecast(planned)] == [None, None, 10]
    assert downloads(planned)[1:] == ["org/large (size not known): its size is not known"]
