"""The benchmark of the review features at toy size, on generated reviews."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from reprokit import profiles
from reprokit.pooling import Mean
from reprokit.runs import RequestError
from reprokit.summaries import Asked, summaries

SMALL = "--rows 300 --text-width 8 --image-width 16 --loop-rows 40"
FEW = "--texts 4 --pictures 4 --resnet-pictures 2 --picture-side 32"


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "review_features", ROOT / "benchmarks/review_features.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Processes are run here, in this process, to save the imports: what was printed before."""
    kept: list[str] = []

    class Here:
        pid, returncode = os.getpid(), 0

        def __init__(self, command: list[str], **_: Any) -> None:
            assert Path(command[1]).name == "review_features.py"
            kept.append(capsys.readouterr().out)
            assert speed.main(command[2:]) == 0
            self.stdout = io.StringIO(capsys.readouterr().out)

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Here)
    return kept


def cells(printed: str) -> list[list[str]]:
    """The lines of all tables, without those under the headings."""
    lines = [line for line in printed.splitlines() if re.match(r"\| (?!---)", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# --- generated reviews --------------------------------------------------------------------------
def test_generated_reviews_have_the_shape_of_the_release(speed: ModuleType):
    data = speed.generated(3000, 24.0)
    assert [len(data.rows(at)) for at in range(3)] == [2400, 300, 300]
    of_split = [set(data.users[data.rows(at)].tolist()) for at in range(3)]
    assert not of_split[0] & of_split[1] and not of_split[0] & of_split[2]
    assert len(data) / len(set(data.users.tolist())) == pytest.approx(2.9, abs=0.01)
    sizes = np.bincount(data.items)
    assert sizes.min() == 1 and sizes.mean() == pytest.approx(3.6, abs=0.01)
    assert sizes.max() > 50 * sizes.mean()
    assert len(data.extra_texts) / data.n_users == pytest.approx(1.7, abs=0.01)
    assert len(data.pictures) / len(data) == pytest.approx(1.87, abs=0.1)
    assert np.mean([len(text.split()) for text in data.texts if text]) == pytest.approx(24, rel=0.1)
    again = speed.generated(3000, 24.0)
    assert again.texts == data.texts and np.array_equal(again.items, data.items)


def test_given_vectors_are_found_and_no_encoder_is_asked(speed: ModuleType, tmp_path: Path):
    options = speed.parser().parse_args(SMALL.split())
    data, given = speed.generated(200, 10.0).sealed(), speed.frozen(tmp_path)
    with pytest.raises(RequestError, match="'given' is unknown"):
        profiles.mean_reviews(data, speed.GIVEN, given)
    with speed.giving(options):
        profiles.mean_reviews(data, speed.GIVEN, given)
        profiles.mean_pictures(data, speed.GIVEN, given, speed.KEY)
    means, _ = profiles.mean_reviews(data, speed.GIVEN, given)
    mean, _ = profiles.mean_pictures(data, speed.GIVEN, given, speed.KEY)
    assert [mean.width for mean in (*means, mean)] == [8, 8, 16]
    vectors = np.array(mean.vectors)
    read = vectors.any(axis=1)
    assert np.allclose(np.linalg.norm(vectors[read], axis=1), 1) and 0 < (~read).sum() < 30
    assert len(mean.of) == read.sum()
    if hasattr(os, "posix_fadvise"):
        speed.forget(speed.file_of(mean))
        assert np.array_equal(np.load(speed.file_of(mean)), vectors)


def test_looked_up_summaries_are_those_of_the_profile(speed: ModuleType, tmp_path: Path):
    options = speed.parser().parse_args(SMALL.split())
    data, given, asked = speed.generated(200, 10.0).sealed(), speed.frozen(tmp_path), Asked()
    described = {
        side: profiles.described_by(data, side, speed.LEAKAGE, 20) for side in ("user", "item")
    }
    with speed.giving(options):
        profiles.summary_vectors(data, described, asked, speed.GIVEN, given, speed.LEAKAGE)
    whole, _ = profiles.summary_vectors(data, described, asked, speed.GIVEN, given, speed.LEAKAGE)
    kinds = {"user": "user", "item": data.kind}
    for (side, one), theirs in zip(described.items(), whole, strict=True):
        said, _ = summaries(one.sets, kinds[side], asked, given.folder, given.progress)
        ours = speed.looked_up(said, one, given)(np.arange(200))
        assert np.array_equal(ours, theirs(np.arange(200))) and ours.any()


# --- the straightforward forms ------------------------------------------------------------------
@pytest.mark.parametrize("field", range(3))
def test_the_straightforward_forms_give_what_ours_does_for_every_row(
    speed: ModuleType, tmp_path: Path, field: int
):
    path = tmp_path / "vectors.npy"
    np.save(path, np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32))
    data = speed.generated(200, 10.0).sealed()
    vectors, of, groups = speed.documents_of(data, speed.FIELDS[field], path)
    ours, rows = Mean(vectors, of, groups), np.arange(200)
    expected = ours(rows)
    assert 0 < ours.empty.sum() < 150  # rows without other documents are among them
    assert np.allclose(speed.Loop(vectors, of, groups)(rows), expected, atol=1e-6)
    assert np.allclose(speed.table(vectors, of, groups), expected, atol=1e-6)


def test_a_part_of_the_rows_is_extrapolated_and_says_so(
    speed: ModuleType, capsys: pytest.CaptureFixture[str]
):
    def made(rows: int, before: float, seconds: float, difference: float = 0.0) -> dict[str, Any]:
        steps = [
            {"seconds": before, "cpu": before, "anonymous": 110.0},
            {"seconds": seconds, "cpu": seconds, "anonymous": 130.0},
        ]
        return {"steps": steps, "rows": rows, "before": 100.0, "difference": difference}

    found = {"loop": made(10, 1.0, 3.0), "ours": made(100, 2.0, 0.5)}
    assert speed.show_forms("toy", 100, found)
    loop, ours = cells(capsys.readouterr().out)
    assert loop[0] == "toy: loop, extrapolated from 10 rows"
    assert loop[1:7] == ["1.00", "30.00", "31.00", "31.00", "12.40x", "30"]
    assert ours[0] == "toy: ours, measured whole" and ours[5] == "1.00x"
    for wrong in (1e-5, float("nan")):
        found["loop"] = made(10, 1.0, 3.0, wrong)
        assert not speed.show_forms("toy", 100, found)


def test_tables_are_measured_on_as_many_rows_as_fit(speed: ModuleType):
    texts, _, pictures = (
        speed.fitting(100_000, field, width)
        for field, width in zip(speed.FIELDS, (384, 384, 2048), strict=True)
    )
    assert 0 < pictures < texts <= 100_000 and pictures % 1000 == 0
    assert speed.fitting(300, speed.FIELDS[0], 8) == 300


# --- the whole ----------------------------------------------------------------------------------
def test_every_step_and_form_has_its_line_and_no_file_is_left(
    speed: ModuleType, here: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    cold = ["--cold"] if hasattr(os, "posix_fadvise") else []
    given = [*SMALL.split(), "--folder", str(tmp_path), "--parts", "features", *cold]
    assert speed.main(given) == 0
    printed = "".join(here) + capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert "240 + 30 + 30 generated reviews" in printed
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in cells(printed):
        if line[1][0].isdigit():
            tables[heading].append(line)
        else:
            heading = line[0].partition(",")[0]
            tables[heading] = []
    assert {name: len(lines) for name, lines in tables.items()} == {
        "baseline": 6 + 1 + 4,
        "proposed": 7 + 1,
        "leave-one-out means": 3 * 3,
    }
    for name in ("baseline", "proposed"):
        seconds = [float(line[1]) for line in tables[name]]
        whole = [line[0] for line in tables[name]].index("in all")
        assert sum(seconds[:whole]) == pytest.approx(seconds[whole], abs=0.1)
        assert all(len(line) == 5 for line in tables[name])
    assert re.search(r"goal 20 s: met with [\d.]+; goal 2,000 MB: met with [\d,]+ anon", printed)
    forms = [
        re.search(": (loop|table|ours), (.*)", line[0]) for line in tables["leave-one-out means"]
    ]
    assert [found.groups() for found in forms if found][:3] == [
        ("loop", "extrapolated from 40 rows"),
        ("table", "measured whole"),
        ("ours", "measured whole"),
    ]
    assert "All forms give the same" in printed


def test_a_form_that_differs_fails_the_proof(
    speed: ModuleType,
    here: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    right = speed.table
    monkeypatch.setattr(speed, "table", lambda *given: right(*given) + np.float32(1e-4))
    assert speed.main([*SMALL.split(), "--folder", str(tmp_path), "--parts", "features"]) == 1
    assert "The forms do NOT give the same" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_process_of_its_own_says_what_it_took(speed: ModuleType, tmp_path: Path):
    path = tmp_path / "vectors.npy"
    np.save(path, np.ones((50_000, 16), np.float32))
    options = speed.parser().parse_args(SMALL.split())
    made = speed.in_a_process(options, tmp_path, "form", "table", 2, 20_000, path, 40)
    before, rows = made["steps"]
    assert before["seconds"] < rows["seconds"] and rows["cpu"] > 0
    assert made["rows"] == 20_000 and made["difference"] <= 1e-6
    if sys.platform.startswith("linux"):
        assert 1 < made["before"] < rows["anonymous"] <= rows["resident"] * 1.01
        assert rows["anonymous"] - made["before"] > 1  # the table that stays has 1.3 MB


def test_wrong_sizes_are_refused_in_one_line(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    wrong = ("--rows 99", "--texts 1", "--words 0", f"--folder {tmp_path / 'none'}")
    for given in wrong:
        assert speed.main(given.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == len(wrong) and not printed.out
    assert "--rows must be 100 at least, got 99" in printed.err


# --- encoders -----------------------------------------------------------------------------------
def test_every_frozen_model_has_its_rate_and_a_missing_one_its_reason(
    speed: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.setattr(speed, "MINILM", "nowhere")
    folder = tmp_path / "files"
    folder.mkdir()
    given = [*FEW.split(), "--folder", str(folder), "--data-dir", str(tmp_path)]
    assert speed.main([*given, "--parts", "encoders"]) == 0
    printed = capsys.readouterr().out
    assert "reviews: generated, because" in printed and not list(folder.iterdir())
    missing, *measured = cells(printed)[1:]
    assert missing[1].startswith("not measured: text encoder 'nowhere' is unknown")
    names = ["ResNet-50", "palette", "BLIP-2, tiny", "extractive", "price tags", "types"]
    assert len(measured) == len(names)
    for name, line in zip(names, measured, strict=True):
        assert line[0].startswith(name) and len(line) == 7
        assert all(float(cell.replace(",", "")) >= 0 for cell in line[2:6])
    assert "2,048 numbers" in measured[0][0] and measured[0][1] == "1 pictures"
    assert measured[2][1] == "3 pictures" and measured[2][6] == "says nothing of the real one"
    assert re.fullmatch(r"203,000 pictures: [\d.]+ h", measured[1][6])


def test_loading_is_not_part_of_a_rate(
    speed: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """By a clock that only the work moves: loading takes 5 s, an item 2 s."""
    clock = [0.0]

    def work(items: list[int], name: str) -> str:
        clock[0] += 5 + 2 * len(items) + 100 * (name == "run0")  # libraries
        return ", more"

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    speed.rate("toy", "texts", list(range(11)), work)
    (line,) = cells(capsys.readouterr().out)
    assert line[:4] == ["toy, more", "10 texts", "7.0", "2000.00"] and line[5] == "0.5"


def test_texts_are_kept_as_a_run_keeps_them(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(speed, "MINILM", "tiny")
    told = speed.text_work(tmp_path, ["good food", "slow"], "run")
    assert told == ", 128 numbers, 0 texts are cut"
    (path,) = (tmp_path / "run/features").glob("*.json")
    assert json.loads(path.read_text())["counts"]["texts"] == 2
