"""From a YAML file to a plan: rows, grids, keys, costs; pure but for `prepare.py`; begin with `load.py`."""
