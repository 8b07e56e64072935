"""The small shop of the nightly tests, whose recommendations are published here."""

from tests.nightly.conftest import shop

__all__ = ["shop"]
