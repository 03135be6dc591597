"""MMREC: an LLM-based multi-modal recommender on restaurant reviews. Not the MMRec toolbox.

Paper   Tian, Wang, Zhao and Ding, arXiv 2408.04211.
Tables  mmrec/table1, table2, mmrec/figure2, figure3.

Built so far: the published numbers. Its systems are listed as not built.
"""

from __future__ import annotations

from collections.abc import Mapping

from reprokit.data import Source
from reprokit.runs import System
from reprokit.tables import Table

DATASETS: Mapping[str, Source] = {}
SYSTEMS: Mapping[str, System] = {}
TABLES = (
    Table("mmrec/table1", "Best model on the training set", labels=3),
    Table("mmrec/table2", "Best model on the test set", labels=3),
    Table("mmrec/figure2", "Example of an LLM user summary"),
    Table("mmrec/figure3", "Images with their BLIP-2 captions"),
)
