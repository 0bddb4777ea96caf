"""What a data set holds: counts, sizes, duplicates, and a sheet of its images; begin with `audit.py`."""
