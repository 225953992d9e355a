# The two commands are `make book` and `make test`; both set up what they need first.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROFILE ?= pocket
# Chapters that `make book` runs beside those of NAME: changed, all or none.
RUN ?= changed
NAME ?=
# A command that runs another on a cluster and waits for it, such as "srun --gpus 8"; how many chapters side by side.
SUBMIT ?=
PARALLEL ?=
ONLY ?= *
BOOK = $(BIN)/python -m workflow.book --profile "$(PROFILE)" --name "$(NAME)" --submit "$(SUBMIT)" $(PARALLEL:%=--jobs %)
PORT ?= 8000
JOBS ?= 2
ALL ?=
# The set-up is done anew when these files' content changes; their dates say nothing.
STAMP := $(VENV)/.setup-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: help setup book chapters accept seeds test lint gpu serve translations clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 22
	@echo "  make book NAME=mask_rcnn       runs this chapter anew; RUN=all runs every chapter, RUN=none none"
	@echo "  make seeds ONLY='*rcnn*'       those models alone"
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

# 1. draws data/pocket, 2. runs the chapters that are out of date, or where none is and none has run here yet the proof
# (workflow/config.yaml), 3. builds the pages of each language if anything in them has changed.
book: setup ## draws the data, runs what is out of date or one chapter as a proof, builds the book in English and Japanese
	@$(BOOK) --run $(RUN)

chapters: setup ## the same without the pages
	@$(BOOK) --run $(RUN) --no-pages

accept: setup ## takes runs over into the repository: NAME=rpn, NAME=all or NAME=seeds
	@test -n "$(NAME)" || { echo "Which one? make accept NAME=rpn, NAME=all or NAME=seeds"; exit 2; }
	@$(BIN)/python -m workflow.accept "$(NAME)"

seeds: setup ## trains the chapters' models with two more seeds, for make accept NAME=seeds
	@$(BIN)/python -m workflow.seeds --only "$(ONLY)"

# 1. linter and types, 2. the data and the pages if they are not up to date (no chapter runs), 3. all tests, of which one
# fails with the names of the chapters that are out of date, 4. every chapter at two training steps.
test: setup lint ## ruff, mypy, all tests, then every chapter at two training steps
	@$(BIN)/python -m workflow.book --run none
	ALL=$(ALL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(JOBS) --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest notebooks --nbval --nbval-current-env \
		--nbval-sanitize-with notebooks/sanitize.cfg -n $(JOBS) --dist loadfile

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
