# make demo   a first distillation, from nothing
# make test   the tests, from nothing
# make lint   ruff and mypy

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/.installed
	@test -f digits.yaml || $(BIN)/kdzoo init digits
	$(BIN)/kdzoo run digits.yaml

test: .venv/.installed-tests
	$(BIN)/python -m pytest

lint: .venv/.installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv

# The constraints pin every version; the stamps are renewed when it or the project's needs change.
.venv/.installed: constraints.txt pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/.installed-tests: constraints.txt pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@
