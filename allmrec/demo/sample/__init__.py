"""A shop that never was: a deterministic catalogue and log to demonstrate and test on.

`shop` holds what is true (genres, franchises, hidden clusters, tastes), `log` lets users act on it, `titles` puts
the visible part of it into words, and `corruption` corrupts the tables on request.
"""
