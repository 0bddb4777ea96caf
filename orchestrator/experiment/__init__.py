"""From a YAML file to a plan: rows, grids, keys, and in `cost/` what it costs; pure but for `prepare.py`.

Begin with `load.py`.
"""
