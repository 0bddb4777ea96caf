#!/usr/bin/env bash
# Installs, where this is Debian and we are root, the programs that the tests of deploy/ start.
# What cannot be had is named, and the tests that need it are skipped with that reason.
set -uo pipefail

missing() { ! command -v "$1" >/dev/null 2>&1 && [ ! -x "/usr/sbin/$1" ]; }

declare -A packages=(
    [slurmctld]="slurmctld slurmd slurm-client munge"
    [promtool]="prometheus"
    [buildah]="buildah crun"
    [mmdebstrap]="mmdebstrap"
    [ip]="iproute2"
    [chromium]="chromium"
)
wanted=()
for program in "${!packages[@]}"; do
    if missing "$program"; then read -ra more <<<"${packages[$program]}" && wanted+=("${more[@]}"); fi
done
compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || wanted+=(postgresql)

if ((${#wanted[@]})); then
    if [ "$(id -u)" != 0 ] || missing apt-get; then
        echo "not root on Debian; install yourself what should be tested: ${wanted[*]}"
    else
        export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # packages do not start their services
        apt-get update -qq >/dev/null 2>&1
        for package in "${wanted[@]}"; do
            apt-get install -qq -y --no-install-recommends "$package" >/dev/null 2>&1 || echo "$package: not to be had"
        done
    fi
fi

# Compose v2 came to Debian with the release after bookworm; its package is one program without dependencies.
if missing docker-compose && ! missing apt-get && [ "$(id -u)" = 0 ]; then
    folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 0
    mkdir -p lists/partial cache/archives/partial
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -oE 'https?://[^ ]+' | grep -v security | sort -u | head -1 |
        sed 's|.*|deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] & trixie main|' >sources.list
    options=(-o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update -qq >/dev/null 2>&1
    if apt-get "${options[@]}" download docker-compose >/dev/null 2>&1 && dpkg -x docker-compose_*.deb unpacked; then
        install -m 0755 "$(find unpacked -name docker-compose -type f -perm -u+x | head -1)" /usr/local/bin/docker-compose
    else
        echo "docker-compose: not to be had"
    fi
fi
exit 0
