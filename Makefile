# make demo: a small environment and the bedside reader on the built-in phantom.
# make test: everything else, then lint, types, house rules and tests.

PYTHON ?= python3
DEVICE := .venv-device
DESK := .venv-desk
DATA ?= ../shared/data

.PHONY: demo test lint clean

demo: $(DEVICE)/.done
	$(DEVICE)/bin/sonoglance demo

test: $(DESK)/.done
	@{ command -v Xvfb && command -v gcc; } >/dev/null || { apt-get update -qq && apt-get install -y -qq xvfb x11-xkb-utils x11-apps gcc libc6-dev >/dev/null; } \
	  || echo "window and accelerator tests need: sudo apt-get install xvfb x11-xkb-utils x11-apps gcc libc6-dev"
	$(MAKE) lint
	SONOGLANCE_DATA=$(DATA) $(DESK)/bin/python -m pytest

lint:
	$(DESK)/bin/ruff check .
	$(DESK)/bin/ruff format --check .
	$(DESK)/bin/mypy
	$(DESK)/bin/lint-imports --no-cache

$(DEVICE)/.done: pyproject.toml
	$(PYTHON) -m venv $(DEVICE) || { echo "venv is missing: sudo apt-get install python3-venv"; exit 1; }
	$(DEVICE)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(DESK)/.done: pyproject.toml
	$(PYTHON) -m venv $(DESK) || { echo "venv is missing: sudo apt-get install python3-venv"; exit 1; }
	$(DESK)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(DEVICE) $(DESK) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
