#!/usr/bin/env bash
# Gathers what a GPU machine without a network lacks, in turns of limited size, and prints what installs each there.
set -euo pipefail

usage() {
    cat <<'HELP'
Usage: experiments/benchmarks/carry.sh [options]

Gather what a GPU machine without a network lacks to run this project, in turns that fit, each with the tree, into what
can be sent at a time, and print the commands that install each turn there. The machine has Linux on x86-64, Python
with pip, and PyTorch with torchvision.

Carried are the wheels of requirements.lock that it lacks, checked by their hashes and packed smaller (Ray without its
Java and pages: 30 instead of 76 MiB), the pretrained weights (every *fp16* file of RNC_WEIGHTS, if it is set) and
photographs (every folder of RNC_PHOTOS that holds annotations/, as one tar, if it is set).

  --there FILE     names of the Python packages that the machine has, as it prints them by
                   python3 -m pip list --format freeze | sed 's/[= @].*//'    (default: PyTorch and its CUDA alone)
  --only "NAMES"   carry these packages alone; "hotcoco pycocotools" is what model/ and its tests want beside PyTorch,
                   NumPy, Numba, Pillow, safetensors and SciPy
  --limit MIB      what can be sent at a time, the tree included (default: 64)
  --into FOLDER    where the turns are made (default: .carry, which git ignores; turns from before are sorted anew)
  --to FOLDER      where the machine shall keep it all (default: /opt/carried)
  --python X.Y     the machine's Python (default: 3.12)
  --glibc 2.N      the machine's C library, as `ldd --version` prints it there (default: 2.39)
  --offline        gather nothing, and sort what --into holds already
  -h, --help       show this
HELP
}

fail() {
    echo "error: $*" >&2
    exit 2
}

there="" only="" limit=64 to=/opt/carried python=3.12 glibc=2.39 offline=""
here=$(pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
into=$PWD/.carry
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --offline) offline=yes && shift && continue ;;
    --there | --only | --limit | --into | --to | --python | --glibc) [ $# -gt 1 ] || fail "$1 needs a value" ;;
    *) fail "$1 is no option; --help lists them" ;;
    esac
    case $1 in
    --there) there=$(cd "$here" && realpath -e "$2") || fail "--there: $2 is no file" ;;
    --only) only=$2 ;;
    --limit) limit=$2 ;;
    --into) into=$(cd "$here" && realpath -m "$2") ;;
    --to) to=$2 ;;
    --python) python=$2 ;;
    --glibc) glibc=$2 ;;
    esac
    shift 2
done
[[ $limit =~ ^[0-9]+$ ]] || fail "--limit is $limit, expected whole MiB"
[[ $glibc =~ ^2\.[0-9]+$ ]] || fail "--glibc is $glibc, expected 2.N, as in 2.39"
PYTHON=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$PYTHON")" ] || fail "$PYTHON is missing; run make setup, or name a Python 3.11 or newer with pip and packaging in PYTHON"
travel=("$PYTHON" experiments/benchmarks/travel.py)

gather_wheels() {
    local platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64) minor
    # pip takes these names literally: 2.28 does not stand for all before it.
    for ((minor = ${glibc#2.}; minor >= 5; minor--)); do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
    rm -rf "$into/downloaded" && mkdir "$into/downloaded"
    "${travel[@]}" missing requirements.lock --python "$python" --only "$only" ${there:+--there "$there"} \
        >"$into/downloaded/missing.txt"
    if [ -s "$into/downloaded/missing.txt" ]; then # pip refuses a file that asks for nothing
        "$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --require-hashes --implementation cp \
            --python-version "$python" "${platforms[@]}" --dest "$into/downloaded" \
            --requirement "$into/downloaded/missing.txt" >&2
    fi
    "${travel[@]}" shrink "$into/downloaded" "$into" >&2
}

gather_data() {
    local file
    if [ -n "${RNC_WEIGHTS:-}" ]; then
        for file in "$RNC_WEIGHTS"/*fp16*; do
            [ -f "$file" ] || fail "RNC_WEIGHTS: $RNC_WEIGHTS holds no file of float16 weights"
            cp "$file" "$into/" && chmod u+w "$into/${file##*/}"
        done
    fi
    if [ -n "${RNC_PHOTOS:-}" ]; then
        for file in "$RNC_PHOTOS"/*/annotations; do
            [ -d "$file" ] || fail "RNC_PHOTOS: $RNC_PHOTOS holds no folder with annotations/"
            file=$(basename "$(dirname "$file")")
            tar -C "$RNC_PHOTOS" -cf "$into/$file.tar" "$file"
        done
    fi
}

room() { # bytes of a turn beside the tree, each file of which takes whole blocks
    local tree
    tree=$(git ls-files -z | du -c --block-size=1 --files0-from=- | tail -n 1 | cut -f 1)
    [ "$tree" -lt $((limit * 1024 * 1024)) ] || fail "--limit is $limit MiB, and the tree alone has $((tree / 1024 / 1024))"
    echo $((limit * 1024 * 1024 - tree))
}

print_commands() {
    local turn name kind
    name=$(realpath --relative-to . "$into")
    for turn in $(find "$into" -mindepth 1 -maxdepth 1 -name 'turn*' | sort -V); do
        turn=${turn##*/}
        echo "# $turn: $(du -sh --apparent-size "$into/$turn" | cut -f 1), $(find "$into/$turn" -type f | wc -l) files"
        echo "mkdir -p $to/site $to/weights $to/photos"
        for kind in whl tar pth; do
            compgen -G "$into/$turn/*.$kind" >/dev/null || continue
            case $kind in
            whl) echo "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target $to/site $name/$turn/*.whl"
                echo "python3 -m compileall -q -j 0 $to/site" ;;
            tar) echo "for tar in $name/$turn/*.tar; do tar -C $to/photos -xf \$tar; done" ;;
            pth) echo "cp $name/$turn/*.pth $to/weights/" ;;
            esac
        done
    done
    cat <<END
# after them, in each shell; the commit, for the records, where .git stays behind
export PYTHONPATH=$to/site:\$PWD RNC_WEIGHTS=$to/weights RNC_PHOTOS=$to/photos RNC_GIT_COMMIT=$(git rev-parse HEAD)
# rnc is then
python3 -m orchestrator.cli.main --help
END
}

mkdir -p "$into"
for turn in "$into"/turn*/; do
    [ -d "$turn" ] || continue
    find "$turn" -type f -exec mv -t "$into" {} +
    rmdir "$turn"
done
if [ -z "$offline" ]; then
    gather_wheels
    gather_data
fi
bytes=$(room)
"${travel[@]}" sort "$into" "$bytes"
print_commands
