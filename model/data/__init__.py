"""Data sets in COCO's format: read, checked, cached on each node, turned into batches; begin with `split.py`."""
