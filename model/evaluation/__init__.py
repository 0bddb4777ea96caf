"""The twelve COCO numbers, misalignment and calibration, from one pass over the images; begin with `scoring.py`."""
