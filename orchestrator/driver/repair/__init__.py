"""Looks for what is damaged or left behind, in MLflow and on the storage, and mends it; begin with `defects.py`."""
