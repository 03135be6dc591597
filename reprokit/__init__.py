"""reprokit: the tables of four recommender papers, each a command."""

__version__ = "0.1.0"
