"""Measurements side by side on one machine: `python -m benchmarks.NAME [--quick]`. One module a benchmark."""
