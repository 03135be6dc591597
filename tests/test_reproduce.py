"""From a target to files: planning, execution, failure, resumption, assembly."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from reprokit import ccf_llm, cli, explainrec, provenance, reproduce
from reprokit.click import REUSED
from reprokit.data import Source
from reprokit.datasets import DataError
from reprokit.plan import Request, all_tables, downloads, pick_rows, plan, resolve
from reprokit.reproduce import DONE, FAILED, INCOMPLETE, WRONG
from reprokit.runs import (
    Estimate,
    Job,
    RequestError,
    Result,
    Store,
    System,
    Unavailable,
    digest,
    setting,
)
from reprokit.tables import Column, Row, Table


def request(out: Path, *targets: str, **chosen: Any) -> Request:
    return Request(targets=targets or ("ccf_llm/table3",), out=out, command="test", **chosen)


def make(wanted: Request) -> tuple[reproduce.Outcome, int]:
    planned = plan(wanted)
    outcome = reproduce.execute(planned, quiet=True)
    return outcome, reproduce.assemble(planned, outcome)[1]


def files(out: Path, name: str = "table3") -> dict[str, bytes]:
    folder = out / "demo" / "ccf_llm"
    return {path.name: path.read_bytes() for path in folder.glob(f"{name}*.csv")}


QUICK: dict[str, Any] = {"rows": ("MF",), "dataset": "ml-1m", "seeds": 2}


@dataclass(frozen=True)
class ToySettings:
    llm: str = setting("org/large", "the paper's")
    depth: int = setting(1, "a test")


@dataclass(frozen=True)
class OtherSettings:
    """No language model in it."""


class Toy:
    """A table of three rows: two with a language model, one without; and a hub with one model."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.asked: list[tuple[str, bool]] = []
        self.unavailable = ""
        estimate = Estimate(10.0, 2e9, 3e6)
        self.systems = {
            "toy": System(
                ToySettings,
                self.execute,
                lambda settings, sizes: estimate,
                backbone="llm",
                presets={"demo": {"llm": "tiny"}},
                reasons={"demo": "random weights"},
            ),
            "other": System(OtherSettings, self.execute, lambda settings, sizes: estimate),
        }
        auc = Column("AUC", "test/auc", "ml-1m", definition="auc")
        rows = (Row("A", "toy"), Row("B", "toy", {"depth": 2}), Row("C", "other"))
        self.table = Table("ccf_llm/figure9", "A toy", (auc,), rows)

    def execute(self, job: Job) -> Result:
        self.jobs.append(job)
        if self.unavailable:
            raise Unavailable(self.unavailable)
        run = job.run
        score = 0.6 + 0.05 * getattr(run.settings, "depth", 0) + 0.01 * run.seed
        used = getattr(run.settings, "llm", "")
        return Result(
            {"test/auc": score, "valid/auc": score},
            deviations=(f"{used} in place of org/large",) if used not in ("", "org/large") else (),
            notes=("prompts were cut",) if used else (),
        )

    def identify(self, name: str, cache: Path | None = None, offline: bool = False) -> str:
        self.asked.append((name, offline))
        if name == "tiny" or (name == "org/large" and not offline):
            return f"print of {name}"
        raise RequestError(f"language model '{name}': the hub was not reached")


def toy_request(out: Path, **chosen: Any) -> Request:
    return request(out, "ccf_llm/figure9", **{"preset": "small", "seeds": 1, **chosen})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toy:
    toy = Toy()
    monkeypatch.setattr(ccf_llm, "SYSTEMS", {**ccf_llm.SYSTEMS, **toy.systems})
    monkeypatch.setattr(ccf_llm, "TABLES", (toy.table,))
    size = {"tiny": 0}
    monkeypatch.setattr("reprokit.backbones.identify", toy.identify)
    monkeypatch.setattr("reprokit.sizes.download_bytes", lambda n: size.get(n, 13_500_000_000))
    monkeypatch.setattr(Source, "fingerprint", lambda *arguments: "f00d")
    monkeypatch.setattr("reprokit.plan.differences", lambda *arguments: ())
    return toy


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


def write_ml_1m(folder: Path, users: int = 5) -> None:
    """Events of every user in each of the three windows."""
    folder.mkdir(exist_ok=True)
    times = (994_556_598, 1_020_000_000, 1_034_000_000)
    lines = [
        f"{user}::{1 + (user + at) % 3}::{5 if (user + at) % 2 else 2}::{time + user}"
        for user in range(1, users + 1)
        for at, time in enumerate(times)
    ]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    (folder / "movies.dat").write_text("1::A::X\n2::B::Y\n3::C::Z\n")


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
    lines = reproduce.forecast(planned)
    assert len(lines) == 24 and all(line.needs_data and line.seconds for line in lines)
    write_ml_1m(tmp_path / "ml-1m")
    planned = plan(wanted)
    assert len(downloads(planned)) == 1
    assert {line.needs_data for line in reproduce.forecast(planned)} == {True, False}
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
    lines = {name: (value, why) for _, name, value, why in reproduce.describe(changed, run)}
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


# --- execution ------------------------------------------------------------------------------------


def test_a_finished_request_does_no_work_again_and_writes_the_same_bytes(tmp_path: Path):
    outcome, status = make(request(tmp_path, **QUICK))
    assert (outcome.executed, status) == (6, DONE)
    before = files(tmp_path)
    outcome, status = make(request(tmp_path, **QUICK))
    assert (outcome.executed, outcome.cached, status) == (0, 6, DONE)
    assert files(tmp_path) == before
    make(dataclasses.replace(request(tmp_path / "again", **QUICK)))
    assert files(tmp_path / "again") == before  # the same seeds, from nothing


def test_fresh_runs_only_the_request_again(tmp_path: Path):
    make(request(tmp_path, **QUICK))
    one = {**QUICK, "seeds": 1}
    outcome, _ = make(request(tmp_path, **one, fresh=True))
    assert outcome.executed == 4
    outcome, _ = make(request(tmp_path, **QUICK))
    assert (outcome.executed, outcome.cached) == (0, 6)


def test_a_failed_run_leaves_the_others_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = ccf_llm.SYSTEMS["random"]

    def broken(job: Job) -> Result:
        if job.run.seed == 1:
            raise RuntimeError("out of luck\nand of memory")
        return whole.execute(job)

    system = dataclasses.replace(whole, execute=broken)
    monkeypatch.setitem(ccf_llm.SYSTEMS, "random", system)  # type: ignore[arg-type]
    outcome, status = make(request(tmp_path, **QUICK))
    assert (outcome.executed, status) == (5, FAILED)
    (reason,) = outcome.failed.values()
    assert reason.startswith("RuntimeError: out of luck (traceback in ")
    markdown = (tmp_path / "demo/ccf_llm/table3.md").read_text()
    assert "1 of 2 runs failed: RuntimeError: out of luck" in markdown
    assert "and of memory" in next((tmp_path / "runs").glob("*.error.txt")).read_text()

    monkeypatch.undo()
    outcome, status = make(request(tmp_path, **QUICK))
    assert (outcome.executed, outcome.cached, status) == (1, 5, DONE)
    assert not list((tmp_path / "runs").glob("*.error.txt"))


def test_a_damaged_result_is_made_again_and_never_believed(tmp_path: Path):
    make(request(tmp_path, **QUICK))
    before = files(tmp_path)
    one, other, *_ = sorted((tmp_path / "runs").glob("*.json"))
    one.write_text("[]")
    other.with_suffix(".npz").write_bytes(b"cut")
    outcome, status = make(request(tmp_path, **QUICK))
    assert (outcome.executed, outcome.cached, status) == (2, 4, DONE)
    assert files(tmp_path) == before


def test_results_that_cannot_be_written_are_a_wrong_request(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"--out: .* cannot be written"):
        make(request(tmp_path / "file" / "out", **QUICK))


@pytest.mark.parametrize("fault", ["line", "gz"])
def test_a_file_that_cannot_be_read_is_named_once_and_the_tables_are_still_written(
    fault: str, tmp_path: Path
):
    write_ml_1m(tmp_path / "ml-1m")
    if fault == "line":
        with (tmp_path / "ml-1m/movies.dat").open("a") as file:
            file.write("x::D::W\n")
    else:
        (tmp_path / "ml-1m/ratings.dat").unlink()
        (tmp_path / "ml-1m/ratings.dat.gz").write_bytes(b"\x1f\x8b\x08\x00" + b"x" * 40)
    wanted = request(tmp_path, preset="small", dataset="ml-1m", data_dir=tmp_path, rows=("MF",))
    outcome, status = make(wanted)
    assert status == WRONG
    assert len(set(outcome.failed.values())) == 1
    expected = "movies.dat, line 4: 'x' is not a film id" if fault == "line" else "cannot be read"
    assert expected in next(iter(outcome.failed.values()))
    assert expected in (tmp_path / "small/ccf_llm/table3.md").read_text()


def test_a_metric_that_the_rows_do_not_allow_leaves_its_cell_empty_with_the_reason(tmp_path: Path):
    folder = tmp_path / "ml-1m"
    write_ml_1m(folder)
    text = (folder / "ratings.dat").read_text()
    (folder / "ratings.dat").write_text(text.replace("::2::1034", "::5::1034"))  # test: all liked
    wanted = {"preset": "small", "dataset": "ml-1m", "data_dir": tmp_path, "rows": ("Random",)}
    _, status = make(request(tmp_path, **wanted))
    assert status == INCOMPLETE
    assert "no test/auc" in (tmp_path / "small/ccf_llm/table3.md").read_text()


def test_a_changed_setting_marks_its_row_and_gets_no_verdict(tmp_path: Path):
    write_ml_1m(tmp_path / "ml-1m", users=60)
    wanted = {"preset": "small", "dataset": "ml-1m", "data_dir": tmp_path, "rows": ("MF",)}
    make(request(tmp_path, **wanted, seeds=1, overrides=("mf.dim=4", "mf.max_epochs=1")))
    markdown = (tmp_path / "small/ccf_llm/table3.md").read_text()
    assert "| MF * " in markdown
    assert "MF: settings changed with --set: dim=4, max_epochs=1" in markdown
    assert "reproduced" not in markdown.split("## Protocol")[0].split("Reproduced:")[0]
    with (tmp_path / "small/ccf_llm/table3.compare.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (row["verdict"], row["reason"]) == (
        "not comparable",
        "dim set to 4, max_epochs set to 1",
    )


def test_relaimpr_and_best_of_rows_are_made_from_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """CoLLM's rows stand in for systems that are not built, to try the frame."""
    table = next(table for table in ccf_llm.TABLES if table.id == "ccf_llm/table3")
    rows = (
        Row("MF", "random"),
        Row("CoLLM (MF)", "like-rate", base="MF"),
        Row("CoLLM (LightGCN)", "bias-only", base="MF"),
        Row("CoLLM (Best)", best_of=("CoLLM (MF)", "CoLLM (LightGCN)"), base="MF"),
    )
    changed = dataclasses.replace(table, rows=rows)
    monkeypatch.setattr(ccf_llm, "TABLES", (changed,))
    outcome, status = make(request(tmp_path, dataset="ml-1m", seeds=2, rows=("CoLLM (Best)",)))
    assert (outcome.executed, status) == (4, DONE)  # what it chooses from and its base came along
    with (tmp_path / "demo/ccf_llm/table3.compare.csv").open() as file:
        found = {(row["row"], row["column"]): row for row in csv.DictReader(file)}
    mean = {
        label: float(found[label, "MovieLens-1M AUC"]["mean"]) for label in (r.label for r in rows)
    }
    assert mean["CoLLM (Best)"] == mean["CoLLM (LightGCN)"] != mean["CoLLM (MF)"]
    gain = (mean["CoLLM (Best)"] - 0.5) / (mean["MF"] - 0.5) - 1
    got = float(found["CoLLM (Best)", "MovieLens-1M RelaImpr"]["mean"])
    assert got == pytest.approx(100 * gain, rel=1e-3)
    assert found["CoLLM (Best)", "MovieLens-1M AUC"]["verdict"] == "not comparable"


def test_rows_that_are_not_built_are_listed_and_never_invented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unbuilt = Table("explainrec/table3", "A title"), Table("explainrec/figure2", "A picture")
    monkeypatch.setattr(explainrec, "TABLES", unbuilt)
    outcome, status = make(request(tmp_path, "explainrec/table3", "explainrec/figure2"))
    assert (outcome.executed, status) == (0, INCOMPLETE)
    with (tmp_path / "demo/explainrec/table3.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == ["LightGCN", "TALLRec", "Content-Based", "ExplainRec"]
    assert all(cell == "" for row in rows[1:] for cell in row[1:])


def test_tables_show_every_finished_run_also_of_rows_not_asked_for_now(tmp_path: Path):
    make(request(tmp_path, **QUICK))
    other = {**QUICK, "rows": ("LightGCN",)}
    _, status = make(request(tmp_path, **other))
    assert status == DONE
    with (tmp_path / "demo/ccf_llm/table3.csv").open() as file:
        cells = {row["Method"]: row["MovieLens-1M AUC"] for row in csv.DictReader(file)}
    assert cells["MF"] and cells["LightGCN"] and not cells["SASRec"]


def test_provenance_names_runs_settings_data_versions_and_time(tmp_path: Path):
    make(request(tmp_path, **QUICK))
    told = json.loads((tmp_path / "demo/ccf_llm/table3.json").read_text())
    assert told["cells"]["filled"] == 1 and told["command"] == "test"
    run = next(run for run in told["runs"] if run["system"] == "mf")
    assert run["settings"]["dim"] == 16 and len(run["fingerprint"]) == 64
    facts = run["provenance"]
    assert {"commit", "cores", "python", "seconds", "started", "threads", "versions"} <= set(facts)
    assert Store(tmp_path).folder.joinpath(f"{run['id']}.npz").is_file()
    selection = json.loads((tmp_path / "runs" / f"{run['id']}.json").read_text())["selection"]
    assert (selection["split"], selection["metric"]) == ("valid", "auc")


def test_a_dry_run_forecasts_and_starts_nothing(tmp_path: Path):
    lines = reproduce.forecast(plan(request(tmp_path, **QUICK)))
    assert [line.cached for line in lines] == [False] * 6
    assert all(line.estimate and line.estimate.memory > 0 and line.seconds for line in lines)
    assert not (tmp_path / "runs").exists()
    make(request(tmp_path, **{**QUICK, "seeds": 1}))
    lines = reproduce.forecast(plan(request(tmp_path, **QUICK)))
    mf = [line for line in lines if line.run.system == "mf"]
    assert [line.cached for line in mf] == [True, False]
    assert mf[1].measured is not None  # by the other seed


def test_a_table_with_another_number_of_seeds_says_so(tmp_path: Path):
    make(request(tmp_path, **QUICK))
    text = (tmp_path / "demo/ccf_llm/table3.md").read_text()
    assert "over 2 seeds" in text


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


# --- the best of the repeats ----------------------------------------------------------------------


def chosen_by(
    scores: Sequence[tuple[float, Any]], toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's seeds have these validation and test values, and the table takes the best."""

    def execute(job: Job) -> Result:
        valid, test = scores[job.run.seed]
        return Result({"valid/tnr": valid, "made": test} if valid else {"made": test})

    systems = {name: dataclasses.replace(one, execute=execute) for name, one in toy.systems.items()}
    monkeypatch.setattr(ccf_llm, "SYSTEMS", {**ccf_llm.SYSTEMS, **systems})
    columns = (Column("Made", "made", "ml-1m"),)
    table = dataclasses.replace(
        toy.table, columns=columns, rows=toy.table.rows[2:], best_by="valid/tnr"
    )
    monkeypatch.setattr(ccf_llm, "TABLES", (table,))


def first_line(tmp_path: Path) -> dict[str, str]:
    with (tmp_path / "small/ccf_llm/figure9.compare.csv").open() as file:
        return next(csv.DictReader(file))


def test_the_run_that_validation_prefers_fills_the_cell_and_of_equals_the_lowest_seed(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen_by([(0.5, 0.9), (0.8, 0.6), (0.8, 0.7), (0.1, 0.8)], toy, monkeypatch)
    assert make(toy_request(tmp_path, seeds=4))[1] == DONE
    found = first_line(tmp_path)
    assert (found["best"], found["mean"], found["n"]) == ("0.6", "0.75", "4")
    folder = tmp_path / "small/ccf_llm"
    assert (folder / "figure9.csv").read_text().splitlines()[1] == "C,0.6000"
    assert "| C       | 0.6000; 0.7500 ± 0.1291 |" in (folder / "figure9.md").read_text()


def test_one_seed_is_no_choice(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chosen_by([(0.5, 0.9)], toy, monkeypatch)
    assert make(toy_request(tmp_path))[1] == DONE
    assert first_line(tmp_path)["best"] == "" and first_line(tmp_path)["mean"] == "0.9"
    assert "| C       | 0.9000 |" in (tmp_path / "small/ccf_llm/figure9.md").read_text()


def test_the_text_of_a_cell_is_the_preferred_runs_too(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen_by([(0.5, "one"), (0.8, "two")], toy, monkeypatch)
    assert make(toy_request(tmp_path, seeds=2))[1] == DONE
    assert first_line(tmp_path)["mean"] == "two"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([(0.5, 0.9), (0.0, 0.8)], "no valid/tnr, by which the best of its runs is chosen"),
        ([(0.5, "one"), (0.6, "")], "no made: its rows do not allow it, or the system does not"),
    ],
)
def test_what_cannot_be_chosen_or_is_empty_leaves_the_cell_empty_with_the_reason(
    scores: Any, reason: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen_by(scores, toy, monkeypatch)
    assert make(toy_request(tmp_path, seeds=2))[1] == INCOMPLETE
    assert first_line(tmp_path)["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"valid/auc": 0.61234, "test/auc": 0.6}, "valid/auc 0.6123, test/auc 0.6000"),
        (
            {"valid/fpr": 20.0, "test/fpr": 18.157, "test/accuracy": 83.484, "test/loss": 0.1},
            "test/accuracy 83.48, test/fpr 18.16",
        ),
        ({"users": 3, "items": 4}, "2 numbers"),
    ],
)
def test_the_end_of_a_run_is_told_with_its_main_metrics(metrics: dict[str, float], line: str):
    assert reproduce.headline(metrics) == line


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
    assert "| toy on ml-1m | llm     | tiny  | set by you |" in text
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
    lines = reproduce.forecast(planned)
    assert [line.state for line in lines] == ["needs model", "needs model", "to make"]
    assert all(line.estimate and line.seconds == 10 for line in lines)
    planned = plan(toy_request(tmp_path, dry_run=True))
    assert downloads(planned)[1:] == ["org/large (13.5 GB): by the first run that uses it"]
    assert [line.state for line in reproduce.forecast(planned)] == ["to make"] * 3
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
    assert [line.seconds for line in reproduce.forecast(planned)] == [None, None, 10]
    assert downloads(planned)[1:] == ["org/large (size not known): its size is not known"]


# --- what runs tell -------------------------------------------------------------------------------


def test_a_run_that_cannot_be_made_here_is_no_failure(
    toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    toy.unavailable = "no key is set:\nset OPENAI_API_KEY"
    planned = plan(toy_request(tmp_path, rows=("C",), seeds=2))
    outcome = reproduce.execute(planned)
    assert reproduce.assemble(planned, outcome)[1] == INCOMPLETE
    assert not outcome.failed and outcome.executed == 0
    assert "seed 0: not made: no key is set: set OPENAI_API_KEY (" in capfd.readouterr().err
    assert (
        "[2] no key is set: set OPENAI_API_KEY"
        in (tmp_path / "small/ccf_llm/figure9.md").read_text()
    )
    assert not list((tmp_path / "runs").iterdir())
    toy.unavailable = ""
    assert make(toy_request(tmp_path, rows=("C",), seeds=2))[1] == DONE


def refuse(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the runs of `toy` find that the request was wrong."""

    def refusing(job: Job) -> Result:
        raise RequestError("THE_KEY was refused,\nset another one")

    changed = dataclasses.replace(toy.systems["toy"], execute=refusing)
    monkeypatch.setitem(ccf_llm.SYSTEMS, "toy", changed)  # type: ignore[arg-type]


def test_a_request_that_a_run_finds_wrong_fails_that_run_alone(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    refuse(toy, monkeypatch)
    outcome, status = make(toy_request(tmp_path, seeds=2))
    assert (outcome.executed, len(outcome.failed), status) == (2, 4, FAILED)
    text = (tmp_path / "small/ccf_llm/figure9.md").read_text()
    assert "2 of 2 runs failed: THE_KEY was refused, set another one" in text
    assert not list((tmp_path / "runs").glob("*.error.txt"))


def test_a_request_that_one_of_several_processes_finds_wrong_ends_them_all(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    refuse(toy, monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(reproduce, "agree", lambda wanted, waiting, fresh: (waiting, fresh))
    monkeypatch.setattr(reproduce, "abandon", lambda run, reason: sys.exit(reason))
    with pytest.raises(SystemExit, match="THE_KEY was refused, set another one"):
        make(toy_request(tmp_path))


def test_a_run_that_found_a_stage_made_forecasts_no_other_seed(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def quick(job: Job) -> Result:
        return dataclasses.replace(toy.execute(job), data={REUSED: 1})

    changed = dataclasses.replace(toy.systems["toy"], execute=quick)
    monkeypatch.setitem(ccf_llm.SYSTEMS, "toy", changed)  # type: ignore[arg-type]
    make(toy_request(tmp_path))
    lines = reproduce.forecast(plan(toy_request(tmp_path, seeds=2)))
    later = {line.run.system: line for line in lines if line.run.seed == 1}
    assert later["toy"].measured is None and later["toy"].seconds == 10
    assert later["other"].measured is not None and later["other"].seconds < 10


def test_notes_of_runs_stand_under_the_table_once(toy: Toy, tmp_path: Path):
    planned = plan(toy_request(tmp_path, seeds=2))
    rendered, _ = reproduce.assemble(planned, reproduce.execute(planned, quiet=True))
    assert rendered[0].notes == ("prompts were cut",)
    text = (tmp_path / "small/ccf_llm/figure9.md").read_text()
    assert text.count("- **Note**: prompts were cut") == 1


def test_results_of_before_there_were_notes_are_still_read(toy: Toy, tmp_path: Path):
    make(toy_request(tmp_path, rows=("C",)))
    (path,) = (tmp_path / "runs").glob("*.json")
    stored = json.loads(path.read_text())
    del stored["notes"], stored["digest"]
    path.write_text(json.dumps({**stored, "digest": digest(stored)}))
    outcome, status = make(toy_request(tmp_path, rows=("C",)))
    assert (outcome.cached, status) == (1, DONE)


def test_fresh_tells_each_run_when_the_command_started(toy: Toy, tmp_path: Path):
    make(toy_request(tmp_path))
    before = time.time()
    wanted = toy_request(tmp_path, fresh=True)
    after = time.time()
    make(wanted)
    assert [job.fresh for job in toy.jobs[:3]] == [0.0] * 3
    assert len({job.fresh for job in toy.jobs[3:]}) == 1
    assert before <= toy.jobs[3].fresh <= after
    assert {job.folder for job in toy.jobs} == {tmp_path}


def test_settings_of_rows_of_one_system_stand_once_with_all_their_values(toy: Toy, tmp_path: Path):
    planned = plan(toy_request(tmp_path, seeds=2))
    rendered, _ = reproduce.assemble(planned, reproduce.execute(planned, quiet=True))
    assert rendered[0].settings == (
        ("toy on ml-1m", "llm", "org/large", "the paper's"),
        ("toy on ml-1m", "depth", "1 / 2", "a test"),
    )


@pytest.mark.parametrize(
    ("preset", "seeds", "expected"), [("demo", 0, 2), ("small", 0, 5), ("demo", 4, 4)]
)
def test_a_demo_has_fewer_seeds_unless_told(
    toy: Toy, tmp_path: Path, preset: str, seeds: int, expected: int
):
    planned = plan(toy_request(tmp_path, preset=preset, seeds=seeds))
    assert len(planned.wanted) == 3 * expected


def test_a_demo_has_no_more_seeds_than_the_table(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ccf_llm, "TABLES", (dataclasses.replace(toy.table, seeds=1),))
    assert len(plan(toy_request(tmp_path, preset="demo", seeds=0)).wanted) == 3


# --- provenance -----------------------------------------------------------------------------------


def test_optional_packages_are_named_only_where_they_are_installed(
    monkeypatch: pytest.MonkeyPatch,
):
    def version(package: str) -> str:
        if package in ("polars", "peft", "sentence-transformers"):
            raise provenance.importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(provenance.importlib.metadata, "version", version)
    versions = provenance.environment.__wrapped__()["versions"]
    assert versions["polars"] == "absent" and versions["transformers"] == "1.0"
    assert not {"peft", "sentence-transformers"} & set(versions)


def test_each_run_has_the_peak_of_its_own_device_memory(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    peak = [7e9]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_device_name=lambda: "a device",
        max_memory_allocated=lambda: peak[0],
        reset_peak_memory_stats=lambda: peak.__setitem__(0, 0.0),
    )
    fake: Any = ModuleType("torch")
    fake.cuda, fake.get_num_threads = cuda, lambda: 1
    monkeypatch.setitem(sys.modules, "torch", fake)
    execute = toy.execute

    def growing(job: Job) -> Result:
        peak[0] += 1e9
        return execute(job)

    changed = dataclasses.replace(toy.systems["other"], execute=growing)
    monkeypatch.setitem(ccf_llm.SYSTEMS, "other", changed)  # type: ignore[arg-type]
    make(toy_request(tmp_path, rows=("C",), seeds=2))
    told = json.loads((tmp_path / "small/ccf_llm/figure9.json").read_text())
    assert [run["provenance"]["device_peak_memory"] for run in told["runs"]] == [1e9, 1e9]


def test_what_runs_share_is_counted_once_in_their_sum():
    run: Any = None
    one = Estimate(10.0, 0, 0, {"captions": 100.0, "texts": 5.0})
    two = Estimate(20.0, 0, 0, {"captions": 100.0})
    assert one.total == 115
    lines = [reproduce.Forecast(run, False, None, found) for found in (one, two)]
    assert [line.seconds for line in lines] == [115, 120]
    assert reproduce.together(lines) == 10 + 20 + 100 + 5
    measured = reproduce.Forecast(run, False, 7.0, one)
    assert reproduce.together([measured, lines[1]]) == 7 + 120
    assert reproduce.together([reproduce.Forecast(run, False, None, None)]) == 0
