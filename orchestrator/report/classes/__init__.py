"""AP, its interval and precision-recall curves of each class; begin with `numbers.py`."""
