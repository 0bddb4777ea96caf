"""What was measured: tables, pages, rows compared, verdicts on claims, views of MLflow; begin with `results.py`."""
