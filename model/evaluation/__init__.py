"""The twelve COCO numbers and the misalignment, from one pass over the images; begin with `scoring.py`."""
