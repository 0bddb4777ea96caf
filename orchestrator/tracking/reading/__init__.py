"""Reads the runs of large suites: all of them in one answer, and then only what changes."""
