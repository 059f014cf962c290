.PHONY: install test slow lint format ci

install:  ## everything for development
	pip install -c constraints.txt -e ".[dev]"

test:
	pytest

slow:  ## the wheel in a fresh environment
	pytest -m slow

lint:
	ruff check .
	ruff format --check .
	pyright

format:
	ruff check --fix .
	ruff format .

ci:  ## all of it, in fresh environments
	bash .ci/run
