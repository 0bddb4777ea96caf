"""`rnc sweep --fit`: what is fitted on one split and reported on another; begin with `run.py`."""
