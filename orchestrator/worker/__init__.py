"""What runs on the nodes: a Tune trial, its Ray Train workers, their records; begin with `trial.py`."""
