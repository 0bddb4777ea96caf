"""The rows of an experiment as they were measured, and their table with the paper's numbers beside ours."""
