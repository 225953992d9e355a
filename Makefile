# The two commands are `make book` and `make test`; both set up what they need first.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SNAKEMAKE := $(BIN)/snakemake --profile workflow/profiles/default
PROFILE ?= pocket
PORT ?= 8000
JOBS ?= 2
ALL ?=
# The set-up is done anew when these files' content changes; their dates say nothing.
STAMP := $(VENV)/.setup-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: help setup book chapters chapter test lint gpu serve translations clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 22
	@echo "  make chapter NAME=mask_rcnn    runs one chapter and what it reads from"
	@echo "  make test ALL=1                with every reference case instead of one of each kind of architecture"

setup: $(STAMP) ## .venv with the pinned packages and this project (the other commands call it)

$(STAMP):
	@bash workflow/system.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r requirements.lock \
		| sed -un 's/^ *Downloading \(.*\)/  \1/p; s/^Installing.*/Unpacking/p'
	@$(BIN)/python -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@rm -f $(VENV)/.setup-* && touch $@

book: setup ## draws the data, runs every chapter that is not up to date, builds the book in English and Japanese
	@$(SNAKEMAKE) --config profile=$(PROFILE)
	@echo && echo "The book: file://$(CURDIR)/build/book/index.html   (or: make serve)"

chapters: setup ## the chapters alone
	@$(SNAKEMAKE) --config profile=$(PROFILE) -- chapters

chapter: setup
	@test -n "$(NAME)" || { echo "Which one? make chapter NAME=mask_rcnn"; exit 2; }
	@$(SNAKEMAKE) --config profile=$(PROFILE) --forcerun chapter_$(NAME) -- chapter_$(NAME)

test: setup lint ## ruff, mypy, then all tests; runs chapters and builds pages where they are not up to date
	@$(SNAKEMAKE)
	ALL=$(ALL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(JOBS) --dist worksteal
	$(BIN)/python -m pytest notebooks --nbval --nbval-current-env --nbval-sanitize-with notebooks/sanitize.cfg

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

gpu: setup ## what needs a GPU: reference cases, half precision, speed beside torchvision; ten minutes at most
	@$(BIN)/python -m tests.gpu

serve: ## serves the built book on this machine
	@echo "http://localhost:$(PORT)/" && $(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory build/book

translations: setup ## brings the catalogues up to date with the pages and says what is left to translate
	@$(BIN)/python -m workflow.translations

clean: ## removes what was built and what was trained; not the data, not .venv
	rm -rf build runs
