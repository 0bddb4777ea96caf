"""Formats of annotations: a reader for each, into the tables of a split."""
