#!/usr/bin/env bash
# What became of a job: running, success or failed, as Snakemake asks.
if [ ! -f "$1/status" ]; then echo running
elif [ "$(cat "$1/status")" = 0 ]; then echo success
else echo failed; fi
