"""What was measured, as tables, pages, verdicts on claims, and views of MLflow; begin with `results.py`."""
