"""LLM-EMF: LLM-enhanced multimodal fusion for cross-domain sequential recommendation.

Paper   arXiv 2506.17966.
Tables  llm_emf/table1 to table4, llm_emf/figure5.

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
    Table("llm_emf/table1", "Statistics of two cross-domain scenarios"),
    Table("llm_emf/table2", "Results on Food-Kitchen, percent"),
    Table("llm_emf/table3", "Results on Movie-Book, percent"),
    Table("llm_emf/table4", "Ablation on Movie", labels=4),
    Table("llm_emf/figure5", "Sensitivity to the hyper-parameters on Movie"),
)
