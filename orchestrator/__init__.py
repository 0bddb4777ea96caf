"""Turns experiment files into trainings and evaluations, runs what is missing, and renders the tables."""
