"""From a plan to files: execution, failure, resumption, assembly, what is told of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from toys import QUICK, Toy, make, request, toy, toy_request, write_ml_1m

from reprokit import ccf_llm, explainrec, forecasting, provenance, reproduce
from reprokit.click import REUSED
from reprokit.plan import plan
from reprokit.reproduce import DONE, FAILED, INCOMPLETE, WRONG
from reprokit.runs import Estimate, Job, RequestError, Result, Store, digest
from reprokit.tables import Column, Row, Table

__all__ = ["toy"]  # the fixture


def files(out: Path, name: str = "table3") -> dict[str, bytes]:
    folder = out / "demo" / "ccf_llm"
    return {path.name: path.read_bytes() for path in folder.glob(f"{name}*.csv")}


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
    lines = forecasting.forecast(plan(request(tmp_path, **QUICK)))
    assert [line.cached for line in lines] == [False] * 6
    assert all(line.estimate and line.estimate.memory > 0 and line.seconds for line in lines)
    assert not (tmp_path / "runs").exists()
    make(request(tmp_path, **{**QUICK, "seeds": 1}))
    lines = forecasting.forecast(plan(request(tmp_path, **QUICK)))
    mf = [line for line in lines if line.run.system == "mf"]
    assert [line.cached for line in mf] == [True, False]
    assert mf[1].measured is not None  # by the other seed


def test_a_table_with_another_number_of_seeds_says_so(tmp_path: Path):
    make(request(tmp_path, **QUICK))
    text = (tmp_path / "demo/ccf_llm/table3.md").read_text()
    assert "over 2 seeds" in text


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
    lines = forecasting.forecast(plan(toy_request(tmp_path, seeds=2)))
    later = {line.run.system: line for line in lines if line.run.seed == 1}
    assert later["toy"].measured is None and later["toy"].seconds == 10
    assert later["other"].measured is not None and later["other"].seconds < 10


def test_notes_of_runs_stand_under_the_table_once(toy: Toy, tmp_path: Path):
    planned = plan(toy_request(tmp_path, seeds=2))
    rendered, _ = reproduce.assemble(planned, reproduce.execute(planned, quiet=True))
    assert rendered[0].notes == ("prompts were cut (toy)",)
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
        ("toy", "llm", "org/large", "the paper's"),
        ("toy", "depth", "1 / 2", "a test"),
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
    lines = [forecasting.Forecast(run, False, None, found) for found in (one, two)]
    assert [line.seconds for line in lines] == [115, 120]
    assert forecasting.together(lines) == 10 + 20 + 100 + 5
    measured = forecasting.Forecast(run, False, 7.0, one)
    assert forecasting.together([measured, lines[1]]) == 7 + 120
    assert forecasting.together([forecasting.Forecast(run, False, None, None)]) == 0
