"""Layouts of data sets: for each family of formats, how its files are recognised and where their images lie."""
