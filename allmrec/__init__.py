"""A-LLMRec (KDD 2024) as a distributed batch recommender. The library: pure functions and torch modules."""

from allmrec.core.version import __version__

__all__ = ["__version__", "read_recommendations", "read_vectors"]


def __getattr__(name: str) -> object:
    if name in ("read_recommendations", "read_vectors"):  # importing the version alone stays quick
        from allmrec.publishing import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
