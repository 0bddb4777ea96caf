"""What our MLflow servers answer beside MLflow's API: the embedded one all of it, a cluster's serve.py its lists."""
