"""Checkpoints after training: find, pull, evaluate, predict, sweep, register; begin with `pull.py`."""
