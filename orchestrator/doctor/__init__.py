"""`rnc doctor`: checks of each machine, and of machines against each other; begin with `diagnose.py`."""
