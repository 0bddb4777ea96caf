"""MLflow: server, REST API, runs, files, the ledger of a suite; and the logs of trainings. Begin with `ledger.py`."""
