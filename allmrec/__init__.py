"""A-LLMRec (KDD 2024) as a distributed batch recommender. The library: pure functions and torch modules."""

__version__ = "0.1.0"
