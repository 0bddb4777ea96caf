#!/bin/sh
# Makes the Secrets that the objects here refer to, out of random values that are written nowhere else.
# Run it once, before the first `kubectl apply`; Secrets that exist are left as they are.
#
#   ./make-secrets.sh                                        # all, for overlays dev and gpu
#   POSTGRES_PASSWORD_FILE=FILE ./make-secrets.sh --external # for overlay prod: the password of your database, no S3 keys
set -eu
umask 077
NAMESPACE=retinanet-conf
random() { openssl rand -hex 24; }
held=$(mktemp -d)
trap 'rm -rf "$held"' EXIT INT TERM

# make NAME KEY=VALUE-FILE...: values pass through files, so that nobody sees them in the list of processes.
make() {
    name=$1
    shift
    if kubectl --namespace "$NAMESPACE" get secret "$name" >/dev/null 2>&1; then
        echo "secret $name exists, and stays"
        return
    fi
    set -- $(for key in "$@"; do echo "--from-file=$key=$held/$key"; done)
    kubectl --namespace "$NAMESPACE" create secret generic "$name" "$@"
}

fill() {
    for key in "$@"; do random | tr -d '\n' >"$held/$key"; done
}

kubectl create namespace "$NAMESPACE" 2>/dev/null || true
fill auth_token MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY RNC_MLFLOW_PASSWORD \
    RNC_MLFLOW_READER_PASSWORD POSTGRES_PASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
printf reader >"$held/RNC_MLFLOW_READER_USERNAME"
if [ "${1:-}" = --external ]; then
    tr -d '\n' <"${POSTGRES_PASSWORD_FILE:?a file with the password of the database user mlflow}" >"$held/POSTGRES_PASSWORD"
fi
make ray-auth-token auth_token
make mlflow MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY RNC_MLFLOW_PASSWORD \
    RNC_MLFLOW_READER_USERNAME RNC_MLFLOW_READER_PASSWORD
make postgres POSTGRES_PASSWORD
[ "${1:-}" = --external ] || make object-store AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
