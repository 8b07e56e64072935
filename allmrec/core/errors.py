"""Errors that mean more than that the user has something to mend."""


class JobTimeout(ValueError):
    """A job takes longer than it may. One of its threads may still be waiting inside Ray."""
