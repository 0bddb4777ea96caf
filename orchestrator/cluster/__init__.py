"""Ray itself: its environment, connection and capacity, and jobs sent to it; begin with `connect.py`."""
