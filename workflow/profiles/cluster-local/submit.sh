#!/usr/bin/env bash
# Submit a job script: start it in the background on this machine, answer with its number. What it prints, and at the
# end its exit status, go to files in build/jobs.
set -euo pipefail
mkdir -p build/jobs
job=$(mktemp -d "build/jobs/job.XXXXXX")
(
    status=0
    bash "$1" >"$job/log" 2>&1 || status=$?
    echo "$status" >"$job/status"
) </dev/null >/dev/null 2>&1 &
echo "$job"
