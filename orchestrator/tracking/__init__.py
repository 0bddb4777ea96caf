"""MLflow: the server, its REST API, runs, files, and the ledger of a suite; begin with `ledger.py`."""
