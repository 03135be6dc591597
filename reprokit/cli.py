"""What a person types: parse, call, print. Everything heavy is imported by the command that needs
it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from reprokit.download import FileStatus
    from reprokit.photos import Counts
    from reprokit.plan import Plan
    from reprokit.progress import Progress
    from reprokit.reproduce import Outcome

EXAMPLES = """examples:
  python -m reprokit reproduce table3            every paper's Table 3 on synthetic data, no network
  python -m reprokit reproduce ccf_llm/table3 --preset small --dataset ml-1m --row MF
  python -m reprokit show ccf_llm/table3         the published numbers
  python -m reprokit data fetch ml-1m            download and verify a data set

exit status: 0 all cells made; 1 a run failed; 2 the request or its input was wrong;
             3 finished, with cells left empty for a stated reason"""


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="reprokit",
        description="Regenerate the tables of four recommender papers, beside the printed numbers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from reprokit import __version__

    parser.add_argument("--version", action="version", version=f"reprokit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    out = argparse.ArgumentParser(add_help=False)
    out.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="results (default: results)",
    )
    data_dir = argparse.ArgumentParser(add_help=False)
    data_dir.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("REPROKIT_DATA", "data")),
        metavar="DIR",
        help="data sets (default: $REPROKIT_DATA, else ./data)",
    )
    offline = argparse.ArgumentParser(add_help=False)
    offline.add_argument(
        "--offline", action="store_true", help="make any connection to another machine an error"
    )

    commands.add_parser(
        "list", parents=[out], help="tables and figures: what is built, what is done"
    ).set_defaults(run=list_targets)

    show = commands.add_parser("show", help="print a published table")
    show.add_argument("targets", nargs="+", metavar="TARGET")
    show.set_defaults(run=show_targets)

    make = commands.add_parser(
        "reproduce",
        parents=[data_dir, out, offline],
        help="regenerate tables",
        description="TARGET: table3 (every paper's Table 3), ccf_llm, ccf_llm/table3, all.",
        epilog="Finished runs are kept and never repeated; a killed command goes on from there. "
        "On several processes: accelerate launch -m reprokit reproduce ...",
    )
    make.add_argument("targets", nargs="+", metavar="TARGET")
    make.add_argument(
        "--preset",
        default="demo",
        help="demo (default): synthetic data, a minute; small: real data, small models; paper: "
        "the paper's scale",
    )
    make.add_argument(
        "--row",
        action="append",
        default=[],
        metavar="TEXT",
        help="only this row: its label, or a part of it (repeatable; cheap sanity rows run along)",
    )
    make.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="only the cells of this data set; a table that can be made on it though the paper's "
        "is not (see: list) is made on it, in files of its name",
    )
    make.add_argument(
        "--seeds",
        type=positive,
        default=0,
        metavar="N",
        help="runs per cell (default: the table's own number, fewer in the demo preset)",
    )
    make.add_argument(
        "--llm",
        default="",
        metavar="NAME|PATH|scratch|tiny|extractive",
        help="language model of every row that has one: a model's name, a folder, a small random "
        "one made here, or for MMREC a rule that picks sentences (default: what the preset sets)",
    )
    make.add_argument(
        "--text-encoder",
        default="",
        metavar="clip|minilm|tiny|NAME|PATH",
        help="frozen encoder of texts: CLIP through open_clip, all-MiniLM-L6-v2, any "
        "sentence-transformers model, or a small random one (default: what the preset sets)",
    )
    make.add_argument(
        "--image-encoder",
        default="",
        metavar="clip|resnet50|tiny|none",
        help="frozen encoder of images (default: what the preset sets)",
    )
    make.add_argument(
        "--captioner",
        default="",
        metavar="blip2|palette|none|NAME|PATH",
        help="frozen model that describes an image in words: BLIP-2, any captioning model, or a "
        "rule that names its colours (default: what the preset sets)",
    )
    make.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SYSTEM.KEY=VALUE",
        help="change a setting, such as mf.lr=0.01 (repeatable)",
    )
    make.add_argument(
        "--dry-run",
        action="store_true",
        help="print each run with time, memory and disk; start nothing",
    )
    make.add_argument(
        "--fresh", action="store_true", help="forget the finished runs of this request first"
    )
    make.add_argument(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="only every N-th run, from the I-th on",
    )
    make.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="time between checkpoints of a run (default: 20); changes no result",
    )
    make.set_defaults(run=reproduce_targets)

    data = commands.add_parser("data", help="list, check, fetch and count data sets")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser(
        "list", parents=[data_dir], help="the data sets, their size and licence"
    ).set_defaults(run=data_list)
    check = actions.add_parser(
        "check", parents=[data_dir], help="compare files with the publisher's"
    )
    check.add_argument("names", nargs="+", metavar="NAME")
    check.set_defaults(run=data_check)
    fetch = actions.add_parser(
        "fetch", parents=[data_dir, offline], help="download, resume, verify"
    )
    fetch.add_argument("names", nargs="+", metavar="NAME")
    fetch.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take files fetched by hand from DIR",
    )
    pictures = fetch.add_argument_group(
        "pictures",
        "of google-restaurants, cdsr-*, the reviews of amazon-*, and ml-posters (with a key of "
        "themoviedb.org in TMDB_API_KEY); see data/README.md",
    )
    pictures.add_argument(
        "--images",
        action="store_true",
        help="the data set's pictures, one by one, in place of its files; goes on where it was",
    )
    pictures.add_argument(
        "--rate",
        type=positive_number,
        metavar="N",
        help="at most N requests a second (default: 5)",
    )
    pictures.add_argument(
        "--limit", type=positive, metavar="N", help="ask for N pictures, then end (default: all)"
    )
    pictures.add_argument(
        "--image-url", metavar="URL", help="another address of a picture, with {id} in it"
    )
    pictures.add_argument(
        "--retry-gone",
        action="store_true",
        help="ask again for pictures that were gone, as after another --image-url",
    )
    fetch.set_defaults(run=data_fetch)
    stats = actions.add_parser(
        "stats", parents=[data_dir], help="count a data set beside what is printed of it"
    )
    stats.add_argument("names", nargs="+", metavar="NAME")
    stats.set_defaults(run=data_stats)

    human = commands.add_parser("human", help="ExplainRec's human study: sheets out, ratings in")
    actions = human.add_subparsers(dest="action", required=True, metavar="ACTION")
    sheets = actions.add_parser(
        "export",
        parents=[data_dir, out],
        help="blinded rating sheets of finished runs",
        description="Explanations of ExplainRec, TALLRec and NARRE from the runs in --out, as a "
        "CSV sheet and an offline HTML form for each rater, and the key of their codes.",
    )
    sheets.add_argument("--preset", default="demo", help="of the runs (default: demo)")
    sheets.add_argument(
        "--dataset", default="", metavar="NAME", help="default: the first that all three explain"
    )
    for name in ("--llm", "--text-encoder", "--image-encoder"):
        sheets.add_argument(name, default="", metavar="NAME", help="as the runs were made with")
    sheets.add_argument(
        "--set", action="append", default=[], metavar="SYSTEM.KEY=VALUE", help="the same"
    )
    sheets.add_argument("--raters", type=positive, default=10, metavar="N", help="default: 10")
    sheets.add_argument("--items", type=positive, default=30, metavar="N", help="default: 30")
    sheets.add_argument("--seed", type=natural, default=0, metavar="N", help="default: 0")
    sheets.add_argument(
        "--folder", type=Path, metavar="DIR", help="default: human-study in the data directory"
    )
    sheets.set_defaults(run=human_export)
    returned = actions.add_parser(
        "analyse",
        help="means, intervals, tests and agreement of returned sheets",
        epilog="exit status: 0 where a line could be used; 2 where none could",
    )
    returned.add_argument(
        "sheets", nargs="+", type=Path, metavar="SHEETS", help="CSV files, or folders of them"
    )
    returned.add_argument("--key", type=Path, required=True, metavar="FILE", help="key.json")
    returned.add_argument(
        "--out", type=Path, metavar="DIR", help="of the report (default: beside the key)"
    )
    returned.add_argument(
        "--strict", action="store_true", help="refuse sheets with a line that cannot be used"
    )
    returned.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="of the bootstrap (default: 0)"
    )
    returned.set_defaults(run=human_analyse)
    return parser


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)


def natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got '{text}'")
    return int(text)


def positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return number


def shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(
            f"expected I/N with 1 <= I <= N, such as 2/4, got '{text}'"
        )
    return int(index), int(count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a wrong request ends with one line."""
    options = build_parser().parse_args(arguments)
    options.typed = sys.argv[1:] if arguments is None else list(arguments)
    if getattr(options, "offline", False):
        close_network()
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        complain("stopped; what is finished is kept, and the same command goes on from here")
        return 130
    except BrokenPipeError:  # the reader of our output is gone: end as a signal would
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except ValueError as error:
        from reprokit.datasets import DataError
        from reprokit.runs import RequestError

        if not isinstance(error, RequestError | DataError):
            raise
        complain(str(error))
        return 2


def complain(message: str) -> None:
    """One line on standard error; from the second process on it says which one speaks."""
    rank = int(os.environ.get("RANK", 0))
    print(f"reprokit: {f'process {rank}: ' if rank else ''}{message}", file=sys.stderr)


def close_network() -> None:
    """`--offline`: connecting anywhere but to this machine raises."""
    import socket

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["REPROKIT_OFFLINE"] = "1"  # for the processes that we start

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: socket.socket, address: Any) -> Any:
            host = address[0] if isinstance(address, tuple) else ""
            if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "::1", "localhost"):
                raise ConnectionRefusedError(f"--offline: connection to {host} refused")
            return connect(self, address)

        return checked

    socket.socket.connect = guarded(socket.socket.connect)  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded(socket.socket.connect_ex)  # type: ignore[method-assign]


# --- tables -------------------------------------------------------------------------------------
def list_targets(options: argparse.Namespace) -> int:
    from reprokit.plan import NOT_BUILT, PAPERS
    from reprokit.rendering import grid
    from reprokit.reproduce import progress_of

    rows = [("Target", "Title", "Data sets", "Rows built", "Done")]
    for paper in PAPERS.values():
        for table in paper.TABLES:
            lines = len(table.published.rows)
            built = f"{len(table.rows)} of {lines}" if lines else NOT_BUILT
            built += f" + {len(table.sanity)} ours" if table.sanity else ""
            done = progress_of(options.out, table)
            names = [*table.datasets, *(f"({name})" for name in table.others)]
            rows.append((table.id, table.title, ", ".join(names), built, done))
    print(grid(rows))
    if any(table.others for paper in PAPERS.values() for table in paper.TABLES):
        print("\nIn brackets: data sets that the paper does not use, with --dataset.")
    return 0


def show_targets(options: argparse.Namespace) -> int:
    from reprokit.plan import resolve
    from reprokit.rendering import to_text

    for table in resolve(options.targets):
        print(f"{table.id}: {table.title}\n\n{to_text(table)}\n")
    return 0


def reproduce_targets(options: argparse.Namespace) -> int:
    from reprokit import reproduce
    from reprokit.plan import Request, plan

    request = Request(
        targets=tuple(options.targets),
        preset=options.preset,
        rows=tuple(options.row),
        dataset=options.dataset,
        seeds=options.seeds,
        llm=options.llm,
        text_encoder=options.text_encoder,
        image_encoder=options.image_encoder,
        captioner=options.captioner,
        overrides=tuple(options.set),
        data_dir=options.data_dir,
        out=options.out,
        shard=options.shard,
        fresh=options.fresh,
        dry_run=options.dry_run,
        offline=options.offline,
        checkpoint_seconds=options.checkpoint_seconds,
        command="python -m reprokit " + shlex.join(options.typed),
    )
    planned = plan(request)
    if options.dry_run:
        from reprokit.forecasting import print_forecast

        print_forecast(planned)
        return 0
    outcome = reproduce.execute(planned)
    if int(os.environ.get("RANK", 0)):
        return 0  # one process writes and prints
    status = report(planned, outcome)
    # A launcher of several processes takes any status but 0 for a crash; the last line says it all.
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return 0 if launched and status == reproduce.INCOMPLETE else status


def report(planned: Plan, outcome: Outcome) -> int:
    """Print every table as it was written, then what is missing and where the files are."""
    from reprokit import reproduce
    from reprokit.plan import NOT_BUILT
    from reprokit.rendering import body, footnotes

    rendered, status = reproduce.assemble(planned, outcome)
    for one in rendered:
        figure, picture = one.table.is_figure, reproduce.picture_of(planned, one.table)
        against = f"; {one.table.nothing_printed}" if figure else " (published)"
        if one.instead and not figure:
            against = " (published, on the paper's own data)"
        ours = "ours ± spread" if one.seeds > 1 else "ours"
        ours = "our best run; mean ± spread" if one.chosen else ours
        print(f"\n{one.heading}")
        marks = "; (ours) marks sanity rows that the paper lacks"
        print(f"{ours}{against}{marks if any(line.ours for line in one.lines) else ''}\n")
        print(body(one, markdown=False))
        for note in (*footnotes(one), *(f"note: {note}" for note in one.notes)):
            print(note)
        if figure and picture.is_file():
            print(f"picture: {picture}")
    for table in planned.tables:
        if not table.published.rows:
            print(f"\n{table.id}: {table.title}: {NOT_BUILT}")
    made = [one.table.id for one in rendered]
    left = [t.id for t in planned.tables if t.published.rows and t.id not in made]
    if left:
        print(f"\nLeft as they are, since no cell of theirs is requested: {', '.join(left)}.")
    request = planned.request
    if request.preset == "demo" and rendered:
        print(
            "\nSynthetic data and small models: these numbers are not comparable with the papers'."
        )
    folders = dict.fromkeys(str(reproduce.folder_of(planned, one.table)) for one in rendered)
    counts = [f"{outcome.executed} made, {outcome.cached} kept, {len(outcome.failed)} failed"]
    counts += [f"{len(outcome.unavailable)} not made"] if outcome.unavailable else []
    print(f"\nRuns: {', '.join(counts)}.")
    if folders:
        print(f"CSV, Markdown, comparison and provenance: {', '.join(folders)}")
    if status == reproduce.INCOMPLETE:
        print("Some requested cells are empty for the reasons above: exit status 3.")
    return status


# --- data ---------------------------------------------------------------------------------------
def data_list(options: argparse.Namespace) -> int:
    from reprokit.datasets import DATASETS
    from reprokit.download import find, megabytes
    from reprokit.rendering import grid

    rows = [("Name", "Folder", "Here", "Download", "Licence", "Title")]
    for one in DATASETS.values():
        here = sum(bool(find(options.data_dir / one.folder, file.path)) for file in one.files)
        size = (
            megabytes(one.size) if one.size else ("by hand" if not one.archives else "size unknown")
        )
        rows.append(
            (one.name, one.folder, f"{here}/{len(one.files)} files", size, one.licence, one.title)
        )
    print(grid(rows))
    print(f"\nData directory: {options.data_dir}. Sources, terms and checksums: data/README.md")
    return 0


def data_check(options: argparse.Namespace) -> int:
    """Exit status 0: all files are there and nothing speaks against them; 3: not so."""
    from reprokit.download import check
    from reprokit.rendering import grid

    rows: list[tuple[str, ...]] = [("File", "Present", "Size", "Checksum", "Note")]
    fine = True
    for name in options.names:
        for status in check(name, options.data_dir):
            rows.append(status_row(name, status))
            fine &= status.ok
    print(grid(rows))
    return 0 if fine else 3


def status_row(name: str, status: FileStatus) -> tuple[str, ...]:
    words = {True: "as published", False: "differs", None: "not known"}
    return (
        f"{name}/{status.path}",
        "yes" if status.present else "no",
        words[status.size_ok] if status.present else "",
        words[status.hash_ok] if status.present else "",
        status.note,
    )


def data_fetch(options: argparse.Namespace) -> int:
    from reprokit.download import fetch
    from reprokit.progress import transfer
    from reprokit.runs import RequestError

    if options.images:
        return data_fetch_images(options)
    for option in ("rate", "limit", "image_url", "retry_gone"):
        if getattr(options, option):
            typed = f"--{option.replace('_', '-')}"
            raise RequestError(f"{typed} is about pictures: add --images, or leave it out")
    for name in options.names:
        with transfer(name) as advance:
            fetched = fetch(name, options.data_dir, options.source, advance, options.offline)
        print(fetched.message)
    return 0


def data_fetch_images(options: argparse.Namespace) -> int:
    """Exit status 0: every picture is here, gone or refused; 3: some failed or are left."""
    from reprokit import photos
    from reprokit.progress import Progress
    from reprokit.runs import RequestError

    if options.source:
        raise RequestError("--from brings files and --images asks a server: give one of them")
    rate, limit, complete = options.rate or photos.RATE, options.limit or 0, True
    wanted = {
        name: photos.picture_addresses(name, options.data_dir, options.image_url or "")
        for name in options.names
    }
    for name, places in wanted.items():
        folder = photos.pictures_folder(name, options.data_dir)
        if options.retry_gone and not options.offline:
            photos.forget_gone(folder)
        if not options.offline:
            print(f"{name}: {photos.outlook(places, folder, rate, limit)}", flush=True)
        with Progress(runs=1) as progress:
            progress.start_run(f"{name}, pictures")
            show = picture_bar(progress, limit)
            counts = photos.fetch_pictures(
                places.addresses,
                folder,
                rate,
                limit=limit,
                report=show,
                offline=options.offline,
                ask=places.ask or photos.ask_picture,
            )
        if counts.stopped:
            complain(f"{name}: stopped, {counts.stopped}. The same command goes on from here")
        print(f"{name}: {counts}; in {folder}")
        complete &= counts.complete
    return 0 if complete else 3


def picture_bar(progress: Progress, limit: int) -> Callable[[Counts], None]:
    """Shows what is settled of the pictures that this start asks for."""
    before: list[int] = []

    def show(counts: Counts) -> None:
        if not before:
            before.append(counts.left)
            progress.start_steps(min(limit or counts.left, counts.left))
        text = f"{counts.fetched:,} fetched, {counts.gone:,} gone, {counts.failed:,} failed"
        progress.step(before[0] - counts.left, text)

    return show


def data_stats(options: argparse.Namespace) -> int:
    """Exit status 0 whatever the counts are: a difference is marked, not an error."""
    from reprokit.counts import compare, count
    from reprokit.rendering import grid

    for name in options.names:
        rows = [("Statistic", "Counted", "Published", "Mark", "Published in")]
        for statistic, counted, published, source, mark in compare(
            name, count(name, options.data_dir)
        ):
            shown = "" if published is None else f"{published:,}"
            rows.append((statistic, f"{counted:,}", shown, mark, source))
        print(f"{name}\n\n{grid(rows)}\n")
    return 0


# --- human study --------------------------------------------------------------------------------
def human_export(options: argparse.Namespace) -> int:
    from reprokit.human import export_command

    return export_command(options)


def human_analyse(options: argparse.Namespace) -> int:
    """Exit status 0: a line could be used, and with --strict every one."""
    from reprokit.human import analyse_command

    return analyse_command(options)
