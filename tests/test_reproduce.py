"""From a target to files: planning, execution, failure, resumption, assembly."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from reprokit import ccf_llm, reproduce
from reprokit.datasets import DataError
from reprokit.reproduce import DONE, FAILED, INCOMPLETE, Request, RequestError, plan, resolve
from reprokit.runs import Job, Result, Store


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


# --- targets and requests -------------------------------------------------------------------------


def test_table3_means_every_papers_table_3():
    assert [table.id for table in resolve(["table3"])] == [
        "ccf_llm/table3",
        "explainrec/table3",
        "llm_emf/table3",
    ]
    assert len(resolve(["all"])) == 24
    assert len(resolve(["ccf_llm", "ccf_llm/table3"])) == 8


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"targets": ("ccf_llm/tabel3",)}, "Did you mean 'ccf_llm/table3'.*reprokit list"),
        ({"preset": "smal"}, "Did you mean 'small'"),
        ({"dataset": "ml1m"}, "Did you mean 'ml-1m'.*amazon-book, ml-1m"),
        ({"rows": ("LihgtGCN",)}, "no row 'LihgtGCN'.*Did you mean 'LightGCN'"),
        ({"overrides": ("mf.lr",)}, "expected system.key=value"),
        ({"overrides": ("mff.lr=1",)}, "no system 'mff'. Did you mean 'mf'"),
        ({"overrides": ("mf.lrr=1",)}, "mf has no setting 'lrr'. Did you mean 'lr'"),
        ({"overrides": ("mf.dim=ten",)}, "expected int"),
        ({"overrides": ("mf.dim=-1",)}, "dim must be positive"),
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
    planned = plan(request(tmp_path, preset="small", data_dir=tmp_path))
    reasons = {spot.reason for spot in planned.spots if spot.column == "Amazon-Book AUC"}
    assert any("Books_5.json" in reason and "missing" in reason for reason in reasons)
    assert all(run.dataset == "ml-1m" for run in planned.wanted)


def test_files_of_another_size_than_published_are_noted(tmp_path: Path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::1::5::994556598\n")
    (folder / "movies.dat").write_text("1::A::B\n")
    planned = plan(request(tmp_path, preset="small", dataset="ml-1m", data_dir=tmp_path))
    assert "publisher's file 24,594,131" in planned.notes["ml-1m"][0]


def test_a_row_is_picked_by_its_exact_label_else_by_a_part_of_it(tmp_path: Path):
    def labels(*texts: str) -> set[str]:
        return {label for _, label in reproduce.pick_rows(texts, resolve(["ccf_llm/table3"]))}

    assert labels("mf") == {"MF"}
    assert labels("collm (") == {"CoLLM (MF)", "CoLLM (LightGCN)", "CoLLM (SASRec)", "CoLLM (Best)"}
    planned = plan(request(tmp_path, **QUICK))
    assert {run.system for run in planned.wanted} == {"mf", "random", "like-rate", "bias-only"}


def test_settings_of_the_user_change_the_run_and_show_in_the_table(tmp_path: Path):
    plain = plan(request(tmp_path, **QUICK))
    changed = plan(request(tmp_path, **QUICK, overrides=("mf.dim=4", "mf.max_epochs=2")))
    ids = [{run.id for run in one.wanted if run.system == "mf"} for one in (plain, changed)]
    assert not ids[0] & ids[1]
    run = next(run for run in changed.wanted if run.system == "mf")
    lines = {name: (value, why) for _, name, value, why in reproduce.describe(run)}
    assert lines["dim"][0] == "4" and "default 256" in lines["dim"][1]


def test_shards_split_the_runs_without_overlap(tmp_path: Path):
    whole = {run.id for run in plan(request(tmp_path)).wanted}
    parts = [{run.id for run in plan(request(tmp_path, shard=(i, 3))).wanted} for i in (1, 2, 3)]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole) == 44


def test_presets_that_choose_the_same_settings_share_runs(tmp_path: Path):
    """Identity is what decides the outcome: the preset's name is not part of it."""
    system = ccf_llm.SYSTEMS["mf"]
    small, paper = (system.configure("ml-1m", preset, {}) for preset in ("small", "paper"))
    assert small == paper


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
    def broken(job: Job) -> Result:
        if job.run.seed == 1:
            raise RuntimeError("out of luck\nand of memory")
        return ccf_llm.run_random(job)

    system = dataclasses.replace(ccf_llm.SYSTEMS["random"], execute=broken)
    monkeypatch.setitem(ccf_llm.SYSTEMS, "random", system)  # type: ignore[arg-type]
    outcome, status = make(request(tmp_path, **QUICK))
    assert (outcome.executed, status) == (5, FAILED)
    assert list(outcome.failed.values()) == ["RuntimeError: out of luck"]
    markdown = (tmp_path / "demo/ccf_llm/table3.md").read_text()
    assert "1 of 2 runs failed: RuntimeError: out of luck" in markdown
    assert "and of memory" in next((tmp_path / "runs").glob("*.error.txt")).read_text()

    monkeypatch.undo()
    outcome, status = make(request(tmp_path, **QUICK))
    assert (outcome.executed, outcome.cached, status) == (1, 5, DONE)
    assert not list((tmp_path / "runs").glob("*.error.txt"))


def test_rows_that_are_not_built_are_listed_and_never_invented(tmp_path: Path):
    outcome, status = make(request(tmp_path, "explainrec/table3", "ccf_llm/figure4"))
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
    assert all(line.estimate.memory > 0 and line.seconds > 0 for line in lines)
    assert not (tmp_path / "runs").exists()
    make(request(tmp_path, **{**QUICK, "seeds": 1}))
    lines = reproduce.forecast(plan(request(tmp_path, **QUICK)))
    mf = [line for line in lines if line.run.system == "mf"]
    assert [line.cached for line in mf] == [True, False]
    assert mf[1].measured  # by the other seed


def test_a_table_with_another_number_of_seeds_says_so(tmp_path: Path):
    make(request(tmp_path, **QUICK))
    text = (tmp_path / "demo/ccf_llm/table3.md").read_text()
    assert "over 2 seeds" in text
