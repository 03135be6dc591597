"""The program as a person starts it: in processes of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, launch, reprokit

from reprokit import cli

MF = ("reproduce", "ccf_llm/table3", "--row", "MF", "--dataset", "ml-1m", "--seeds", "1")


def test_help_and_list_load_neither_torch_nor_scikit_learn(tmp_path: Path):
    code = (
        "import sys; from reprokit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'polars', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["list"], ["show", "table3"], ["reproduce", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reproduce", "tabel3"), "unknown target 'tabel3'. Did you mean 'table3'?"),
        (("reproduce", "table3", "--seeds", "0"), "expected a whole number from 1"),
        (("reproduce", "table3", "--shard", "3/2"), "expected I/N with 1 <= I <= N"),
        (("show", "ccf_lm"), "Did you mean 'ccf_llm'?"),
        (("data", "fetch", "ml1m"), "Did you mean 'ml-1m'?"),
        (("data", "stats", "ml-1m", "--data-dir", "nowhere"), "ratings.dat is missing"),
        (("repro",), "invalid choice"),
    ],
)
def test_a_wrong_request_ends_with_one_line_and_status_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_row_that_is_not_built_ends_with_status_3(tmp_path: Path):
    done = reprokit("reproduce", "mmrec/table1", "--out", tmp_path)
    assert done.returncode == 3
    assert "not built yet" in done.stdout and "exit status 3" in done.stdout


def test_show_prints_the_published_table(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["show", "ccf_llm/table3"]) == 0
    shown = capsys.readouterr().out
    assert "| CCF-LLM (SASRec)   | 0.7526" in shown


def test_a_dry_run_prints_runs_with_their_cost_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([*MF, "--out", str(tmp_path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "ccf_llm mf on demo-ml-1m, seed 0" in shown and "4 of 4 runs to make" in shown
    assert not list(tmp_path.glob("runs/*"))


def test_offline_refuses_every_connection_but_to_this_machine(tmp_path: Path):
    code = (
        "import socket; from reprokit.cli import close_network; close_network()\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "socket.create_connection(('192.0.2.1', 80), timeout=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "--offline: connection to 192.0.2.1 refused" in done.stderr


def test_data_stats_marks_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,964982703\n")
    (folder / "movies.csv").write_text("movieId,title,genres\n1,A,Drama\n")
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,good,964982703\n")
    assert cli.main(["data", "stats", "ml-latest-small", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "100,836" in shown and "differs" in shown


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "reprokit", "reproduce", "ccf_llm/table3", "--out", str(out)]
    rows = ["--row", "SASRec", "--row", "LightGCN", "--dataset", "ml-1m", "--seeds", "1"]
    # LightGCN at a size where torch works on several threads.
    short = ["--set", "sasrec.max_epochs=5", "--set", "lightgcn.max_epochs=5"]
    wide = ["--set", "lightgcn.dim=64", "--set", "lightgcn.batch_size=2048"]
    return subprocess.Popen(
        [*command, *rows, *short, *wide, *more],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_again_and_again_the_command_ends_with_the_same_bytes(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(timeout=300) == 0
    # At the first checkpoint, at the next one, and once a run is finished.
    for seen in ("runs/*.ckpt.safetensors", "runs/*.ckpt.safetensors", "runs/*.json"):
        process = start(killed, "--checkpoint-seconds", "0")
        known = {path: path.stat().st_mtime_ns for path in killed.glob(seen)}
        limit = time.monotonic() + 60
        while {p: p.stat().st_mtime_ns for p in killed.glob(seen)} == known:
            assert process.poll() is None and time.monotonic() < limit, "it ended before the kill"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    last = start(killed, "--checkpoint-seconds", "0")
    assert last.wait(timeout=300) == 0
    for name in ("demo/ccf_llm/table3.csv", "demo/ccf_llm/table3.compare.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    for path in (whole / "runs").glob("*.npz"):
        assert path.read_bytes() == (killed / "runs" / path.name).read_bytes()


def test_a_resumed_run_says_so(tmp_path: Path):
    process = start(tmp_path, "--checkpoint-seconds", "0")
    while not list(tmp_path.glob("runs/*.ckpt.safetensors")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    again = start(tmp_path)
    _, said = again.communicate(timeout=300)
    assert "resumed at epoch" in said


# --- several processes ----------------------------------------------------------------------------


def test_two_processes_give_the_scores_of_one_each_row_once_with_one_writer(tmp_path: Path):
    alone = reprokit(*MF, "--out", tmp_path / "one", OMP_NUM_THREADS="1")
    assert alone.returncode == 0, alone.stderr
    both = launch("-m", "reprokit", *MF, "--out", str(tmp_path / "two"))
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("ccf_llm/table3: CCF-LLM and the baselines") == 1  # one process prints
    for path in sorted((tmp_path / "one/runs").glob("*.npz")):
        one = np.load(path, allow_pickle=False)
        two = np.load(tmp_path / "two/runs" / path.name, allow_pickle=False)
        for split in ("valid", "test"):
            for column in ("users", "items", "labels", "warm"):
                np.testing.assert_array_equal(one[f"{split}/{column}"], two[f"{split}/{column}"])
            np.testing.assert_allclose(
                one[f"{split}/scores"], two[f"{split}/scores"], rtol=0, atol=1e-5
            )
    assert len(list((tmp_path / "one/runs").glob("*.npz"))) == 4


def test_under_a_launcher_cells_that_are_not_built_are_not_a_crash(tmp_path: Path):
    done = launch("-m", "reprokit", "reproduce", "mmrec/table1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "not built yet" in done.stdout and "exit status 3" in done.stdout


def test_a_process_that_fails_ends_the_command_with_its_message(tmp_path: Path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import os\n"
        "from reprokit import training\n"
        "from reprokit.cli import main\n"
        "step = training.step\n"
        "def broken(*arguments):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise RuntimeError('the second process is out of luck')\n"
        "    return step(*arguments)\n"
        "training.step = broken\n"
        f"raise SystemExit(main({[*MF, '--out', str(tmp_path / 'out')]!r}))\n"
    )
    done = launch(str(script), seconds=120)
    assert done.returncode != 0
    assert "process 1 failed in ccf_llm mf on demo-ml-1m, seed 0" in done.stderr
    assert "the second process is out of luck" in done.stderr
