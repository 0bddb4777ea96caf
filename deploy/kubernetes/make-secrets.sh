#!/bin/sh
# Makes the Secrets that the objects here refer to, out of random values that are written nowhere else.
# Run it once, before the first `kubectl apply`; Secrets that exist are left as they are.
#
#   ./make-secrets.sh                                        # all, for overlays dev and gpu
#   POSTGRES_PASSWORD_FILE=FILE POSTGRES_CA_FILE=FILE ./make-secrets.sh --external
#       # for overlay prod: the password of your database, who signed its certificate, and no keys of an object store
set -eu
umask 077
namespace=retinanet-conf
external=${1:-}
held=$(mktemp -d)
trap 'rm -rf "$held"' EXIT INT TERM

# Values pass through files, so that nobody sees them in the list of processes.
random() { # NAME KEY: put a random value where `make NAME` takes it
    mkdir -p "$held/$1"
    openssl rand -hex 24 | tr -d '\n' >"$held/$1/$2"
}

make() { # NAME: a Secret with a key for each file
    if kubectl --namespace "$namespace" get secret "$1" >/dev/null 2>&1; then
        echo "secret $1 exists, and stays"
    else
        kubectl --namespace "$namespace" create secret generic "$1" --from-file="$held/$1"
    fi
}

random ray-auth-token auth_token
random mlflow MLFLOW_AUTH_ADMIN_PASSWORD
random mlflow MLFLOW_FLASK_SERVER_SECRET_KEY
random mlflow RNC_MLFLOW_PASSWORD
random mlflow RNC_MLFLOW_READER_PASSWORD
printf reader >"$held/mlflow/RNC_MLFLOW_READER_USERNAME"
random postgres POSTGRES_PASSWORD
random object-store AWS_ACCESS_KEY_ID
random object-store AWS_SECRET_ACCESS_KEY
if [ "$external" = --external ]; then
    tr -d '\n' <"${POSTGRES_PASSWORD_FILE:?a file with the password of the database user mlflow}" \
        >"$held/postgres/POSTGRES_PASSWORD"
    cp "${POSTGRES_CA_FILE:?the certificate of the authority that signed the one of the database}" "$held/postgres/ca.pem"
fi

kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl create namespace "$namespace"
make ray-auth-token
make mlflow
make postgres
[ "$external" = --external ] || make object-store
