"""What happens to a suite from `rnc submit` on: launch, follow, cancel, repair, free; begin with `submit.py`."""
