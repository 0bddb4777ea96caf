"""From somebody's data to an experiment file: what is there, settings that suit it, the file; begin with `write.py`."""
