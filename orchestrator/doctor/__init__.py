"""`rnc doctor`: probes of each machine and judgements on what they find; begin with `diagnose.py`."""
