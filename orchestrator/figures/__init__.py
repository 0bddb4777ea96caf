"""How results are shown: tables, pages, charts, pictures, the lab; knows no MLflow; begin with `table.py`."""
