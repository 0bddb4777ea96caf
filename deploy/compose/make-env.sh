#!/usr/bin/env bash
# Makes .env and secrets/ beside this script, once, with random secrets. Nothing is printed of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

for path in .env secrets; do
    if [ -e "$path" ]; then
        echo "error: $PWD/$path is there already, and is not overwritten: databases remember the secrets they were made with" >&2
        exit 2
    fi
done

# The folder is closed to other users of this machine; the files are open, since containers have users of their own.
umask 077
mkdir secrets
secret() { # VARIABLE FILE
    head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"secrets/$2"
    chmod 0444 "secrets/$2"
    echo "$1_FILE=./secrets/$2"
}

{
    echo "# Made by make-env.sh; .env.example tells what else may be set here."
    secret POSTGRES_PASSWORD postgres-password
    secret AWS_ACCESS_KEY_ID s3-access-key-id
    secret AWS_SECRET_ACCESS_KEY s3-secret-access-key
    secret MLFLOW_AUTH_ADMIN_PASSWORD mlflow-admin-password
    secret MLFLOW_FLASK_SERVER_SECRET_KEY mlflow-session-key
    secret RNC_MLFLOW_PASSWORD rnc-password
    secret RNC_MLFLOW_READER_PASSWORD mlflow-reader-password
    secret RAY_AUTH_TOKEN ray-auth-token
    secret GRAFANA_ADMIN_PASSWORD grafana-admin-password
} >.env.new
mv .env.new .env
(umask 022 && mkdir -p data/coco data/weights)
echo "made $PWD/.env and $PWD/secrets/; you log in to MLflow as admin with the password in secrets/mlflow-admin-password"
