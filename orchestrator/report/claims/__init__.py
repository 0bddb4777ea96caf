"""Claims of the paper, judged by its own numbers and by ours, and its errata; begin with `file.py`."""
