"""ExplainRec: explainable multi-modal zero-shot recommendation with preference attribution.

Paper   Ma et al., arXiv 2511.14770v1.
Tables  explainrec/table1 to table4, explainrec/figure2, figure3, explainrec/human.

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
    Table("explainrec/table1", "Performance on MovieLens-25M and Amazon Movies"),
    Table("explainrec/table2", "Ablation study on MovieLens-25M"),
    Table("explainrec/table3", "Cold start: new users, new items, cross-domain"),
    Table("explainrec/table4", "Efficiency: training time, latency, memory"),
    Table("explainrec/figure2", "Performance comparison, bars"),
    Table("explainrec/figure3", "Ablation and cold start, bars"),
    Table("explainrec/human", "Human study: usefulness, accuracy, clarity on a 5-point scale"),
)
