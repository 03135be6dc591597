"""The program as a person starts it: in processes of its own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, launch, reprokit
from PIL import Image

from reprokit import ccf_llm, cli, explainrec, photos
from reprokit.progress import duration
from reprokit.runs import Estimate, Job, RequestError, Result, System, Unavailable, setting
from reprokit.tables import Column, Row, Table

MF = ("reproduce", "ccf_llm/table3", "--row", "MF", "--dataset", "ml-1m", "--seeds", "1")


def test_help_and_list_load_neither_torch_nor_scikit_learn(tmp_path: Path):
    code = (
        "import sys; from reprokit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'polars', 'rich', 'matplotlib'}\n"
        "heavy &= set(sys.modules)\n"
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
        (("data", "fetch", "ml-1m", "--images"), "ml-1m has no pictures to fetch"),
        (("data", "fetch", "ml-1m", "--rate", "2"), "--rate is about pictures: add --images"),
        (("data", "fetch", "ml-1m", "--images", "--rate", "nan"), "expected a number above 0"),
        (("data", "fetch", "ml-1m", "--images", "--from", "."), "give one of them"),
        (("repro",), "invalid choice"),
        (("reproduce", "ccf_llm/table1", "--llm", "tiny"), "--llm tiny: no row of ccf_llm/table1"),
        (
            ("reproduce", "ccf_llm/table3", "--captioner", "palette"),
            "--captioner palette: no row of ccf_llm/table3 has a captioner",
        ),
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


UNBUILT = (Table("explainrec/table1", "A title"), Table("explainrec/figure2", "A picture"))


def test_a_row_that_is_not_built_ends_with_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(explainrec, "TABLES", UNBUILT)
    assert cli.main(["reproduce", "explainrec/table1", "--out", str(tmp_path)]) == 3
    shown = capsys.readouterr().out
    assert "not built yet" in shown and "exit status 3" in shown


def test_show_prints_the_published_table(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["show", "ccf_llm/table3"]) == 0
    shown = capsys.readouterr().out
    assert "| CCF-LLM (SASRec)   | 0.7526" in shown


def test_show_says_that_of_a_figure_the_paper_prints_a_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(explainrec, "TABLES", UNBUILT)
    assert cli.main(["show", "explainrec/figure2"]) == 0
    assert "the paper prints a picture and no numbers. Not built yet." in capsys.readouterr().out


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


# --- pictures of a data set ----------------------------------------------------------------------


@pytest.fixture
def photo_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves one picture under every path but /lost, which it lacks."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    picture = stream.getvalue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if self.path == "/lost" else 200)
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{{id}}"
    server.shutdown()
    server.server_close()


def test_data_fetch_images_prints_an_outlook_and_counts_and_ends_by_them(
    photo_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "google-restaurants"
    folder.mkdir()
    reviews = {"train": [{"pics": ["a", "lost"]}], "val": [{"pics": ["b"]}], "test": []}
    (folder / "filter_all_t.json").write_text(json.dumps(reviews))
    name = "google-restaurants"
    command = ["data", "fetch", name, "--images", "--data-dir", str(tmp_path), "--rate", "1000"]
    command += ["--image-url", photo_server]
    assert cli.main([*command, "--limit", "1"]) == 3
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{name}: 3 pictures wanted, 0 here, 0 known to be gone; 1 to ask for")
    counted = "3 wanted, 0 here before, 1 fetched, 0 gone, 0 failed, 0 refused, 2 left"
    assert last == f"{name}: {counted}; in {folder / 'images'}"
    assert cli.main(command) == 0
    assert (
        "1 here before, 1 fetched, 1 gone, 0 failed, 0 refused, 0 left" in capsys.readouterr().out
    )
    assert sorted(path.name for path in folder.glob("images/*.png")) == ["a.png", "b.png"]
    assert cli.main([*command, "--retry-gone"]) == 0
    assert "0 known to be gone; 1 to ask for" in capsys.readouterr().out


def test_data_fetch_images_says_why_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "google-restaurants"
    folder.mkdir()
    (folder / "filter_all_t.json").write_text('{"train": [{"pics": ["a"]}], "val": [], "test": []}')
    stopped = photos.Counts(wanted=1, left=1, stopped="24 faults in a row")
    monkeypatch.setattr(photos, "fetch_pictures", lambda *arguments, **options: stopped)
    name = "google-restaurants"
    assert cli.main(["data", "fetch", name, "--images", "--data-dir", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert f"reprokit: {name}: stopped, 24 faults in a row. The same command goes on" in said


def test_data_fetch_images_offline_ends_with_one_line_and_forgets_nothing(tmp_path: Path):
    folder = tmp_path / "google-restaurants"
    (folder / "images").mkdir(parents=True)
    (folder / "images/.gone.jsonl").write_text('{"id": "a", "status": 404, "date": "2025-01-01"}\n')
    reviews = {"train": [{"pics": ["a", "b"]}], "val": [], "test": []}
    (folder / "filter_all_t.json").write_text(json.dumps(reviews))
    command = ("data", "fetch", "google-restaurants", "--images", "--retry-gone", "--offline")
    done = reprokit(*command, "--data-dir", tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert "--offline is set" in done.stderr and done.stderr.count("\n") == 1
    assert (folder / "images/.gone.jsonl").read_text().startswith('{"id": "a"')


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "reprokit", "reproduce", "ccf_llm/table3", "--out", str(out)]
    rows = ["--row", "SASRec", "--row", "LightGCN", "--dataset", "ml-1m", "--seeds", "1"]
    # LightGCN at a size where torch works on several threads.
    short = ["--set", "sasrec.max_epochs=5", "--set", "lightgcn.max_epochs=5"]
    wide = ["--set", "lightgcn.dim=64", "--set", "lightgcn.batch_size=2048"]
    return subprocess.Popen(
        [*command, *rows, *short, *wide, *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_again_and_again_the_command_ends_with_the_same_bytes(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(timeout=300) == 0
    heard = []
    # At the first checkpoint, at the next one, and once a run is finished.
    for seen in ("stages/*.ckpt.safetensors", "stages/*.ckpt.safetensors", "runs/*.json"):
        process = start(killed, "--checkpoint-seconds", "0")
        known = {path: path.stat().st_mtime_ns for path in killed.glob(seen)}
        limit = time.monotonic() + 60
        while {p: p.stat().st_mtime_ns for p in killed.glob(seen)} == known:
            assert process.poll() is None and time.monotonic() < limit, "it ended before the kill"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        heard.append(process.communicate(timeout=60)[1])
    assert "resumed at epoch" not in heard[0] and "resumed at epoch" in "".join(heard)
    last = start(killed, "--checkpoint-seconds", "0")
    assert last.wait(timeout=300) == 0
    for name in ("demo/ccf_llm/table3.csv", "demo/ccf_llm/table3.compare.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    for path in (whole / "runs").glob("*.npz"):
        assert path.read_bytes() == (killed / "runs" / path.name).read_bytes()


# --- language models ------------------------------------------------------------------------------


class Hub:
    """A table whose one row has a language model that is out of reach."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offline: list[bool] = []
        system = System(
            HubSettings, self.execute, lambda settings, sizes: Estimate(1, 1e9, 1e6), backbone="llm"
        )
        column = Column("AUC", "test/auc", "ml-1m")
        table = Table("ccf_llm/figure9", "A toy", (column,), (Row("A", "hub"),))
        monkeypatch.setattr(ccf_llm, "SYSTEMS", {"hub": system})
        monkeypatch.setattr(ccf_llm, "TABLES", (table,))
        monkeypatch.setattr("reprokit.backbones.identify", self.identify)
        monkeypatch.setattr("reprokit.sizes.download_bytes", lambda name: 13_500_000_000)

    def execute(self, job: Job) -> Result:
        raise Unavailable("no key is set")

    def identify(self, name: str, cache: Path | None, offline: bool) -> str:
        self.offline.append(offline)
        if name == "here":
            return "its fingerprint"
        raise RequestError(f"language model '{name}': the hub was not reached")


@dataclass(frozen=True)
class HubSettings:
    llm: str = setting("org/large", "the paper's")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


TOY = ("reproduce", "ccf_llm/figure9", "--seeds", "1")


def test_a_model_out_of_reach_ends_with_one_line_and_status_2(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([*TOY, "--llm", "org/other", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == "reprokit: language model 'org/other': the hub was not reached\n"
    assert hub.offline == [False]


def test_a_dry_run_prints_the_model_to_download_and_the_cost_of_its_runs(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([*TOY, "--dry-run", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "seed 0 | needs model | at most 1 s | 1.0 GB" in shown
    assert "Downloads needed first: org/large (13.5 GB): language model 'org/large'" in shown


def test_a_run_that_cannot_be_made_here_ends_with_status_3(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([*TOY, "--llm", "here", "--out", str(tmp_path)]) == 3
    shown = capsys.readouterr().out
    assert "[1] no key is set" in shown and "0 failed, 1 not made." in shown


def test_a_dry_run_says_what_cannot_be_made_and_counts_no_time_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = ("reproduce", "explainrec/table1", "--seeds", "1", "--dry-run", "--out", str(tmp_path))
    assert cli.main([*table, "--row", "NARRE"]) == 0  # popularity and random run along
    shown = re.sub(" +", " ", capsys.readouterr().out)
    assert "narre on demo-ml-25m, seed 0 | cannot be made | none |" in shown
    assert "narre on demo-amazon-movies-2014, seed 0 | to make | at most" in shown
    assert "1 of the runs cannot be made: the data set has no reviews, and NARRE learns" in shown
    assert "5 of 6 runs to make" in shown


@pytest.mark.parametrize(
    "seconds, words",
    [(0.2, "1 s"), (119.5, "120 s"), (600, "10 min"), (9_000, "2.5 h"), (9e7, "1,042 days")],
)
def test_a_time_is_said_in_the_unit_that_a_reader_weighs_it_in(seconds: float, words: str):
    assert duration(seconds) == words


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
    script = tmp_path / "unbuilt.py"
    script.write_text(
        "from reprokit import cli, explainrec\n"
        "from reprokit.tables import Table\n"
        "explainrec.TABLES = (Table('explainrec/table1', 'A title'),)\n"
        f"raise SystemExit(cli.main(['reproduce', 'explainrec', '--out', {str(tmp_path)!r}]))"
    )
    done = launch(str(script))
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


def test_processes_agree_on_the_time_of_fresh_and_on_what_cannot_be_made(tmp_path: Path):
    script = tmp_path / "toy.py"
    script.write_text(
        "import dataclasses, os, time\n"
        "from reprokit import ccf_llm\n"
        "from reprokit.cli import main\n"
        "from reprokit.runs import Unavailable\n"
        "system, rank = ccf_llm.SYSTEMS['random'], os.environ['RANK']\n"
        "def execute(job):\n"
        f"    with open({str(tmp_path)!r} + '/fresh' + rank, 'a') as file:\n"
        "        print(repr(job.fresh), file=file)\n"
        "    if job.run.seed == 0:\n"
        "        raise Unavailable('no key is set')\n"
        "    return system.execute(job)\n"
        "ccf_llm.SYSTEMS['random'] = dataclasses.replace(system, execute=execute)\n"
        "table = next(table for table in ccf_llm.TABLES if table.name == 'table3')\n"
        "ccf_llm.TABLES = (dataclasses.replace(table, sanity=table.sanity[:1]),)\n"
        "time.sleep(0.2 * int(rank))\n"
        "command = ['reproduce', 'ccf_llm', '--row', 'Random', '--dataset', 'ml-1m', '--fresh']\n"
        f"raise SystemExit(main([*command, '--seeds', '2', '--out', {str(tmp_path)!r}]))\n"
    )
    done = launch(str(script), seconds=120)
    assert done.returncode == 0, done.stderr
    assert "no key is set" in done.stdout and "exit status 3" in done.stdout
    told = [(tmp_path / f"fresh{rank}").read_text().split() for rank in (0, 1)]
    assert told[0] == told[1] and len(set(told[0])) == 1 and float(told[0][0]) > 1.7e9
    assert len(list((tmp_path / "runs").glob("*.json"))) == 1
