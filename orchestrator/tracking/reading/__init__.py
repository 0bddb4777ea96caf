"""Reads suites of thousands of runs: all of them in one answer of our own server, and then what changes."""
