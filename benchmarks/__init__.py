"""Measurements, each a module: ``python -m benchmarks.NAME [--device D] [--json]``. Results are kept in RESULTS.md."""
