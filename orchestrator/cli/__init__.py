"""The command `rnc`: each verb parses, calls one function and prints one thing; begin with `main.py`."""
