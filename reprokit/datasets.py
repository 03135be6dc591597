"""The registry of data sets: source, terms, files, checksums and printed statistics of each.

Every URL is the publisher's own. A size or checksum that is not known is None, never a guess; the
sources of the known ones are listed in data/README.md. Standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field


class DataError(ValueError):
    """The data are missing or wrong. One line: what, where, what to do."""


@dataclass(frozen=True)
class File:
    """A file of a data set; `path` is relative to its folder, "*" stands for any name."""

    path: str
    size: int | None = None
    """Bytes; None where it is not known."""
    sha256: str | None = None


@dataclass(frozen=True)
class Archive:
    """A download. With `members` it is a zip, of which only those are unpacked."""

    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    members: tuple[str, ...] = ()
    """Names in the zip; each is written to its last path component."""
    mirrors: tuple[str, ...] = ()
    """The publisher's other addresses of the same bytes, tried in order when `url` is gone."""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths that this download provides, relative to the data set's folder."""
        return tuple(m.rsplit("/", 1)[-1] for m in self.members) or (self.name,)


@dataclass(frozen=True)
class Expected:
    """A published statistic and where it is printed."""

    value: int | float
    source: str
    bound: bool = False
    """Not printed itself: other printed numbers force it to be at least this."""


@dataclass(frozen=True)
class DataSet:
    """A data set as its publisher ships it."""

    name: str
    folder: str
    """Relative to --data-dir."""
    title: str
    source: str
    """The publisher's page."""
    licence: str
    terms: str
    """What the licence asks, in our words."""
    citation: str
    files: tuple[File, ...]
    archives: tuple[Archive, ...] = ()
    """Empty: to be had by hand only."""
    by_hand: str = ""
    """Where a person gets the files, for a data set or a file without a stable address."""
    expected: Mapping[str, Expected] = field(default_factory=dict)
    notes: str = ""

    @property
    def size(self) -> int | None:
        """Bytes to download; None where a part of it is not known."""
        sizes = [a.size for a in self.archives]
        return sum(s for s in sizes if s) if sizes and all(sizes) else None


GROUPLENS = "GroupLens licence"
GROUPLENS_TERMS = (
    "Research use. Cite the paper, claim no endorsement, no commercial use without permission. "
    "Passing the data on: ML-1M and ML-25M not without permission, latest-small on the same terms."
)
HARPER = (
    "F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), "
    "article 19, 2015. doi 10.1145/2827872"
)
UCSD_TERMS = (
    "No formal licence: offered by the UCSD group for research; the content belongs to its authors "
    "and to the site. Cite the paper; do not pass the data on."
)
HE = (
    "R. He and J. McAuley. Ups and Downs: Modeling the Visual Evolution of Fashion Trends with "
    "One-Class Collaborative Filtering. WWW 2016. doi 10.1145/2872427.2883037"
)
NI = (
    "J. Ni, J. Li and J. McAuley. Justifying Recommendations using Distantly-Labeled Reviews and "
    "Fine-Grained Aspects. EMNLP 2019. doi 10.18653/v1/D19-1018"
)
CAO = (
    "J. Cao, X. Cong, J. Sheng, T. Liu and B. Wang. Contrastive Cross-Domain Sequential "
    "Recommendation. CIKM 2022"
)
YAN = (
    "A. Yan, Z. He, J. Li, T. Zhang and J. McAuley. Personalized Showcases: Generating Multi-Modal "
    "Explanations for Recommendations. arXiv 2207.00422"
)
TAORI = (
    "R. Taori, I. Gulrajani, T. Zhang, Y. Dubois, X. Li, C. Guestrin, P. Liang and T. B. "
    "Hashimoto. Stanford Alpaca: An Instruction-following LLaMA Model. 2023. "
    "https://github.com/tatsu-lab/stanford_alpaca"
)
MMREC = "at least, forced by the accuracy and fp rate of MMREC, Table {}"
CTR = "CCF-LLM, Table 1 (users and items count the padding id)"
UCSD = (
    "https://mcauleylab.ucsd.edu/public_datasets/",
    "https://datarepo.eng.ucsd.edu/mcauley_group/",
)


def _stats(source: str, **values: int | float) -> dict[str, Expected]:
    return {name.replace("_", " "): Expected(value, source) for name, value in values.items()}


def _files(lines: str) -> tuple[File, ...]:
    """One file a line: path, bytes, SHA-256; "-" or nothing where it is not known."""
    files = []
    for line in lines.split("\n"):
        path, size, sha256, *_ = [*line.split(), "-", "-", "-"]
        if path != "-":
            files.append(
                File(path, None if size == "-" else int(size), None if sha256 == "-" else sha256)
            )
    return tuple(files)


def _movielens(
    name: str,
    title: str,
    archive: tuple[int, str, str | None],
    readme: str,
    files: str,
    expected: Mapping[str, Expected],
    notes: str = "",
) -> DataSet:
    """`archive` is the zip's size, SHA-256 and MD5; `readme` holds the licence and comes along."""
    members = tuple(f"{name}/{path}" for path in (*(f.path for f in _files(files)), readme))
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return DataSet(
        name=name,
        folder=name,
        title=title,
        source="https://grouplens.org/datasets/movielens/",
        licence=GROUPLENS,
        terms=GROUPLENS_TERMS,
        citation=HARPER,
        files=_files(files),
        archives=(Archive(url, *archive, members),),
        expected=expected,
        notes=notes,
    )


def _ucsd(
    name: str,
    folder: str,
    title: str,
    source: str,
    citation: str,
    files: str,
    bases: Mapping[str, tuple[str, ...]],
    expected: Mapping[str, Expected],
    notes: str = "",
) -> DataSet:
    """A data set of plain files; `bases` gives the folders on the web that hold each."""
    known = _files(files)
    archives = []
    for file in known:
        url, *mirrors = (base + file.path for base in bases[file.path])
        archives.append(Archive(url, file.size, file.sha256, mirrors=tuple(mirrors)))
    return DataSet(
        name=name,
        folder=folder,
        title=title,
        source=source,
        licence="UCSD research data, no formal licence",
        terms=UCSD_TERMS,
        citation=citation,
        files=known,
        archives=tuple(archives),
        expected=expected,
        notes=notes,
    )


def _amazon_2014(
    name: str, category: str, title: str, known: str, expected: Mapping[str, Expected]
) -> DataSet:
    reviews, metadata = f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"
    base = ("https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",)
    return _ucsd(
        name,
        "amazon-2014",
        f"{title}, 5-core reviews and metadata, Amazon 2014 release",
        "https://jmcauley.ucsd.edu/data/amazon/",
        HE,
        f"{reviews} {known}\n{metadata}",
        {reviews: base, metadata: base},
        expected,
        "A line of the 2014 metadata is a Python literal, not JSON.",
    )


def _cdsr(folder: str, files: str, expected: Mapping[str, Expected]) -> DataSet:
    return DataSet(
        name=f"cdsr-{folder.lower()}",
        folder=f"cdsr/{folder}",
        title=f"{folder.replace('-', ' and ')}, the corrected cross-domain release of C2DSR",
        source="https://github.com/cjx96/C2DSR",
        licence="no licence stated",
        terms=f"No licence is stated. Derived from the Amazon 2014 reviews. {UCSD_TERMS}",
        citation=f"{CAO}; {HE}",
        files=_files(files),
        by_hand=(
            f"the folder {folder} behind the data link in the README of "
            "https://github.com/cjx96/C2DSR (the corrected release)"
        ),
        expected=expected,
        notes=(
            "The releases before this one leak future items and are not accepted. Optional beside "
            "these files: titles.tsv (ASIN, title) and images/<ASIN>.jpg (or .png, .gif, .webp)."
        ),
    )


def _registry() -> dict[str, DataSet]:
    v2 = tuple(base + "data/amazon_v2/" for base in UCSD)
    sets = [
        _movielens(
            "ml-1m",
            "MovieLens-1M",
            (
                5_917_549,
                "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
                "c4d9eecfca2ab87c1945afe126590906",
            ),
            "README",
            """ratings.dat 24594131
            movies.dat 171308
            users.dat 134368""",
            _stats("GroupLens README", ratings=1_000_209, users=6_040, movies=3_883)
            | _stats(CTR, ctr_users=839, ctr_items=3_256)
            | _stats(CTR, ctr_train=33_891, ctr_valid=10_401, ctr_test=7_331),
            "Text is ISO-8859-1. The ctr counts are of the window June 2001 to January 2003.",
        ),
        _movielens(
            "ml-25m",
            "MovieLens-25M",
            (
                261_978_986,
                "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
                "6b51fb2759a8657d3bfcbfc42b592ada",
            ),
            "README.txt",
            """ratings.csv 678260987
            movies.csv 3038099
            tags.csv 38810332
            links.csv 1368578
            genome-scores.csv 435164157
            genome-tags.csv 18103""",
            _stats("GroupLens README", ratings=25_000_095, tags=1_093_360)
            | _stats("GroupLens README and ExplainRec, section IV", users=162_541, movies=62_423),
            "ExplainRec prints 25 million ratings.",
        ),
        _movielens(
            "ml-latest-small",
            "MovieLens latest-small, September 2018",
            (978_202, "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436", None),
            "README.txt",
            """
            ratings.csv 2382886 80da8b3393dae325bbba5a31f291a6ba55d8d4f4396de3c456f2c1635b1b70e8
            movies.csv 484688 c47b783f23eb304413307e1bb05335e427737da20ec8d3c0e96335567dd5f3dc
            tags.csv 114976 68eec00a0820c2faa8863a6df7032f13d5899a4462bce9a97213905297ff3d34
            links.csv 188236 028a4a1d17751ca9276e0e0718cfc22356350f224a996e1ec348c23274b9209d
            """,
            _stats("GroupLens README", ratings=100_836, users=610, movies=9_742, tags=3_683),
            "GroupLens replaces this set from time to time; the checksums are of September 2018.",
        ),
        DataSet(
            name="ml-posters",
            folder="ml-posters",
            title="Film posters by MovieLens film id",
            source="https://www.themoviedb.org/",
            licence="rights of each poster's owner",
            terms="Posters are copyrighted works: keep them local and follow the source's terms.",
            citation="none",
            files=_files("*.jpg"),
            by_hand=(
                "themoviedb.org (data fetch ml-posters --images, with a key of yours in "
                "TMDB_API_KEY), or from a source of your choice, one file <movieId>.jpg a film"
            ),
            notes="No archive is published. A film without a poster counts as a missing image.",
        ),
        _ucsd(
            "amazon-book",
            "amazon-2018",
            "Books, 5-core reviews and metadata, Amazon 2018 release",
            "https://nijianmo.github.io/amazon/",
            NI,
            """
            Books_5.json.gz - ded924d1d1a22bae499f1a1c2b39397104304bfdb24232a2dd0aa50e89cd37bb
            meta_Books.json.gz - 80ed7ac64f5967a140401e8d7bf0587d2e5087492de9e94077a7f554ef6b18f0
            """,
            {
                "Books_5.json.gz": tuple(base + "categoryFilesSmall/" for base in v2),
                "meta_Books.json.gz": tuple(base + "metaFiles2/" for base in v2),
            },
            _stats("publisher's page", reviews=27_164_983)
            | {
                name: Expected(value, "CoLLM, dataset/amazon_book/processing_ood.ipynb")
                for name, value in {
                    "metadata rows": 2_934_949,
                    "rows in 2017 with metadata": 3_933_994,
                    "users above 20": 23_051,
                    "items above 20": 34_769,
                    "rows kept": 778_957,
                    "users": 22_966,
                    "items": 34_153,
                    "train": 727_463,
                    "valid": 25_747,
                    "test": 25_747,
                }.items()
            }
            | _stats(CTR, ctr_users=22_967, ctr_items=34_154)
            | _stats(CTR, ctr_train=727_468, ctr_valid=25_747, ctr_test=25_747),
            "Several GB to download, about 22 GB unpacked (it is read packed). The recipe gives "
            "727,463 training rows where CCF-LLM prints 727,468.",
        ),
        _amazon_2014(
            "amazon-movies-2014",
            "Movies_and_TV",
            "Movies and TV",
            "",
            _stats("publisher's page", reviews=1_697_533)
            | _stats("ExplainRec, section IV", users=123_960, items=50_052),
        ),
        _amazon_2014(
            "amazon-books-2014", "Books", "Books", "", _stats("publisher's page", reviews=8_898_041)
        ),
        _amazon_2014(
            "amazon-musical-instruments",
            "Musical_Instruments",
            "Musical Instruments",
            "2458371 7be9bd716f31ee95311e6dc2ee9f987da10dd78363ec5ee1ebeb67ded689d744",
            _stats("publisher's page", reviews=10_261)
            | _stats("counted in the publisher's file", users=1_429, items=900),
        ),
        DataSet(
            name="alpaca",
            folder="alpaca",
            title="Instructions of Stanford Alpaca",
            source="https://github.com/tatsu-lab/stanford_alpaca",
            licence="CC BY-NC 4.0",
            terms="Not for commercial use; name the source and say what was changed. Written by a "
            "model of OpenAI, whose terms forbid developing models that compete with its own.",
            citation=TAORI,
            files=_files("alpaca_data.json"),
            archives=(
                Archive(
                    "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/"
                    "alpaca_data.json"
                ),
            ),
            expected=_stats("publisher's README", instructions=52_002),
            notes="Neither size nor checksum is published. The branch may change the file.",
        ),
        _cdsr(
            "Food-Kitchen",
            """
        Alist.txt 649954 6961a3420ab9345d967991d5940737a549339ff65b36c3da4cfa619c07dbfc7b
        Blist.txt 792521 6dd8c154773fdd2a63f3d7d4938a51be9180eda07f4092f2f69798fae9975e2b
        traindata_new.txt
        validdata_new.txt 3114696 119222e24c6446231fd5d91d44bfc103ce7a445395a4ebc4e54be6c52a31135c
        testdata_new.txt 3205198 a5bbf914f862cf25552eb28cc07ede1ca5db6c66e61421de7ace7e114cd8df9d
            """,
            _stats("LLM-EMF, Table 1", a_items=29_207, b_items=34_886, train=34_117)
            | _stats("LLM-EMF, Table 1", valid_a=2_722, valid_b=5_451, test_a=2_747, test_b=5_659),
        ),
        _cdsr(
            "Movie-Book",
            "Alist.txt\nBlist.txt\ntraindata_new.txt\nvaliddata_new.txt\ntestdata_new.txt",
            _stats("LLM-EMF, Table 1", a_items=36_845, b_items=63_937, train=58_515)
            | _stats("LLM-EMF, Table 1", valid_a=2_032, valid_b=5_612, test_a=1_978, test_b=5_730),
        ),
        _ucsd(
            "google-restaurants",
            "google-restaurants",
            "Google restaurants, reviews with pictures",
            UCSD[0] + "gdrive/googlelocal_restaurants/",
            YAN,
            "filter_all_t.json",
            {"filter_all_t.json": tuple(b + "gdrive/googlelocal_restaurants/" for b in UCSD)},
            _stats("counted in the release", train=87_013, val=10_860, test=11_015)
            | _stats("counted in the release", train_mean_rating=4.465)
            | _stats("counted in the release", train_history_reviews_a_row=3.4)
            | _stats("counted in the release", train_pictures_a_row=1.868)
            | _stats("counted in the release", valid_users_that_occur_in_train=0)
            | _stats("counted in the release", valid_items_that_occur_in_train=6_282)
            | {
                "train positive share": Expected(0.84, MMREC.format("I"), bound=True),
                "test positive share": Expected(0.83, MMREC.format("II"), bound=True),
            },
            "About 112 MB. The release names pictures by id and ships none: those you have go into "
            "images/<id>.jpg (or .jpeg, .png, .webp, .gif).",
        ),
    ]
    return {one.name: one for one in sets}


DATASETS: dict[str, DataSet] = _registry()


def dataset(name: str) -> DataSet:
    """The registry's entry. Raises DataError with the nearest name."""
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise DataError(f"unknown data set '{name}'.{hint} See: python -m reprokit data list")
