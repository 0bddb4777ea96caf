"""Data sets of any format: found, read, checked, cached on each node, turned into batches; begin with `split.py`."""
