"""From raw predictions to boxes, and from images to boxes; begin with `predictor.py`; Eq. 11 is `fusion.py`."""
