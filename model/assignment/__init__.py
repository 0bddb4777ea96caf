"""Which anchor learns which box: one module for each rule, and `assign`, which takes the one that the settings name."""
