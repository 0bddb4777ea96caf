"""Lets every user of the MLflow server read /metrics, which MLflow itself shows to its administrators alone.

Without this Prometheus would have to hold the administrator's password. MLflow calls `authenticate` where its auth
configuration says `authorization_function = metrics_for_readers:authenticate`, with this file's folder on PYTHONPATH.
"""

from mlflow.server.auth import BEFORE_REQUEST_VALIDATORS, authenticate_request_basic_auth

BEFORE_REQUEST_VALIDATORS["/metrics", "GET"] = lambda: True  # whoever has a password; without one it stays 401
authenticate = authenticate_request_basic_auth
