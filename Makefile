# make demo   a first distillation, from nothing
# make test   the tests, from nothing (make slow: those that take seconds each)
# make lint   ruff and mypy
# make docs   the documentation's site, in build/site

PYTHON ?= python3
BIN := .venv/bin
# Two processes of one thread each; a file's tests share what its fixtures made.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test slow lint docs clean

demo: .venv/.installed
	@test -f digits.yaml || $(BIN)/kdzoo init digits
	$(BIN)/kdzoo run digits.yaml

test: .venv/.installed-tests
	$(PYTEST)

slow: .venv/.installed-tests
	$(PYTEST) -m slow

lint: .venv/.installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

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

.venv/.installed-docs: constraints.txt pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	@touch $@
