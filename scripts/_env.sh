# Sourced by the other scripts: a Python environment with the project in it, made on first use and again when
# pyproject.toml or constraints.txt changed.
#
#     source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
#     ensure_env compare      # or compare,test,dev: extras of pyproject.toml; $bin then holds the environment's commands
#
# SAT_SSVAE_VENV: where the environment lies (default: .venv in the repository); PYTHON: the Python to make it with.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SAT_SSVAE_VENV:-$root/.venv}
bin=$venv/bin
state=$venv/.sat-ssvae # "installing", or the fingerprint and the extras of a finished installation

die() {
    printf 'sat-ssvae: %s\n' "$1" >&2
    exit 1
}

say() { printf 'sat-ssvae: %s\n' "$1" >&2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3 python}; do
        # Runs it instead of looking for the file: a version manager's shim exists for versions that do not run.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "needs Python 3.10, 3.11 or 3.12 with its venv module; install one, or name it: PYTHON=/path/to/python3.11 $0"
}

pip_install() {
    local output
    output=$("$bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
        -c "$root/constraints.txt" "$@" 2>&1) ||
        die "pip could not install $*: $(grep -m 1 ERROR <<<"$output" || tail -n 1 <<<"$output") (is the network up?)"
}

# A killed installation may leave half a package behind, so it starts over; a changed project only installs what is missing.
ensure_env() {
    local fingerprint wanted=$1 now extras python
    # The path belongs to it: the project is installed in place.
    fingerprint=$(printf '%s\n' "$root" | cat - "$root/pyproject.toml" "$root/constraints.txt" | cksum | tr ' ' '-')
    mkdir -p "$venv" || die "cannot make the folder $venv; choose another: SAT_SSVAE_VENV=FOLDER $0"
    if command -v flock >/dev/null; then # two scripts started together: the second waits for the first
        exec 9>"$venv/.lock"
        flock -n 9 || { say "waiting for the script that is installing into $venv..." && flock 9; }
    fi
    now=$(cat "$state" 2>/dev/null || true)
    extras=${now#* }
    if [[ $now != "$fingerprint "* || ",$extras," != *",$wanted,"* ]] || ! "$bin/python" -c '' 2>/dev/null; then
        [[ -n $now || -z $(ls -A "$venv" | grep -vx .lock) ]] ||
            die "$venv holds something that these scripts did not make; choose another: SAT_SSVAE_VENV=FOLDER $0"
        python=$(find_python)
        say "installing into $venv with $("$python" --version), once, one to four minutes..."
        if [[ $now != *" "* ]] || ! "$bin/python" -c '' 2>/dev/null; then
            find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
            echo installing >"$state"
            "$python" -m venv "$venv" || die "could not make a Python environment in $venv"
        fi
        echo installing >"$state"
        [[ ",$extras," == *",$wanted,"* ]] || extras=$wanted
        # torch alone first: asked for with the rest, it could be taken in a newer build that another package admits.
        pip_install "$(grep '^torch==' "$root/constraints.txt")"
        pip_install -e "$root[$extras]"
        printf '%s %s\n' "$fingerprint" "$extras" >"$state"
    fi
    exec 9>&-
}
