# `make demo` and `make test` do everything from a fresh clone; see README.md.
.PHONY: demo test lint setup readme bench clean

PY := .venv/bin/python

demo: setup
	$(PY) examples/digits.py

test: setup lint
	$(PY) -m pytest

readme: setup
	$(PY) scripts/readme.py

# Less than ten minutes on two cores; leave the machine alone meanwhile.
bench: setup
	$(PY) -m benchmarks.bench
	$(PY) scripts/readme.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

setup:
	@sh scripts/setup.sh

clean:
	rm -rf .venv build *.egg-info
