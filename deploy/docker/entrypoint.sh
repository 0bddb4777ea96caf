#!/bin/sh
# Runs a command, and hands it MLflow's password, which its client reads from the environment only, out of the file that
# MLFLOW_TRACKING_PASSWORD_FILE names: so it stands in no definition of a container, which many may read.
set -eu
file=${MLFLOW_TRACKING_PASSWORD_FILE:-}
if [ -n "$file" ]; then
    if [ ! -r "$file" ] || [ ! -s "$file" ]; then
        echo "error: MLFLOW_TRACKING_PASSWORD_FILE: $file is empty, or cannot be read by user $(id -u)" >&2
        exit 2
    fi
    MLFLOW_TRACKING_PASSWORD=$(cat "$file")
    export MLFLOW_TRACKING_PASSWORD
fi
exec "$@"
