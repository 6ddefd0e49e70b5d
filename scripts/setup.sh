#!/bin/sh
# Makes .venv with a CPython 3.10 or 3.9 found on this machine and installs the package there.
# A second run with nothing changed does nothing.
set -eu
cd "$(dirname "$0")/.."

stamp=.venv/.installed
wanted=$(cat setup.py pyproject.toml nnabla_dqa/backends/kernels/* nnabla_dqa/onednn/cpp/* | cksum)
[ -x .venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && exit 0

# Prints the path of interpreter $1 if it really runs, is CPython 3.9 or 3.10 and can make a venv.
usable() {
    "$1" - <<'PY' 2>/dev/null
import sys, platform, ensurepip, venv
ok = platform.python_implementation() == "CPython" and sys.version_info[:2] in ((3, 9), (3, 10))
print(sys.executable) if ok else sys.exit(1)
PY
}

candidates() {
    [ -z "${PYTHON:-}" ] || echo "$PYTHON"
    for name in python3.10 python3.9 python3 python; do
        command -v "$name" || true
    done
    for minor in 10 9; do
        ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.$minor.*/bin/python 2>/dev/null || true
        uv python find "3.$minor" 2>/dev/null || true
        conda env list 2>/dev/null | awk '/\//{print $NF "/bin/python"}' || true
    done
}

python=
for candidate in $(candidates); do
    if python=$(usable "$candidate"); then break; fi
done
if [ -z "$python" ]; then
    echo "No CPython 3.9 or 3.10 found (NNabla has no wheels for newer ones): install one, for example with 'uv python install 3.10', 'pyenv install 3.10' or 'conda create -n py310 python=3.10', or name it: make PYTHON=/path/to/python3.10 ..." >&2
    exit 1
fi

echo "Setting up .venv with $python (about a minute, once)"
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
echo "$wanted" > $stamp
