# `make demo` and `make test` do everything from a fresh clone; see README.md.
.PHONY: demo check test lint docs setup readme bench bench-peers clean

PY := .venv/bin/python
# A process for each core. Each computes with one thread: more would only get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8

demo: setup
	$(PY) examples/digits.py

# While one works: less than a minute on two cores.
check: setup lint
	$(PYTEST) -m "not slow and not mpi and not gpu" --hypothesis-profile=check

test: setup lint
	$(PYTEST) -rsfE

readme: setup
	$(PY) scripts/readme.py

# Less than ten minutes on two cores; leave the machine alone meanwhile.
bench: setup
	$(PY) -m benchmarks.bench
	$(PY) scripts/readme.py

# PyTorch and Brevitas beside ours, in an environment of their own (some 800 MB); minutes.
bench-peers: setup .venv-peers/.installed
	$(PY) -m benchmarks.peers
	$(PY) scripts/readme.py

.venv-peers/.installed:
	$(PY) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch 'brevitas>=0.12,<0.14'
	touch $@

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) scripts/readme.py --check
	$(PY) scripts/check_links.py

# site/index.html, in seconds. A broken link or a docstring that cannot be shown fails; not with
# --quiet, which hides warnings from the strict mode too.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

setup:
	@sh scripts/setup.sh

clean:
	rm -rf .venv .venv-peers build site *.egg-info
