#!/usr/bin/env bash
# A training job of four nodes with eight GPUs each, from the checkout, which all nodes see at the same path:
#
#   bash examples/slurm_job.sh model.path=/shared/models/Qwen3-8B output_dir=/shared/runs
#
# Checks first what needs no GPU: settings, model and data (dry run), and whether the roles fit the devices (plan). Then it
# submits launch/slurm.sbatch, which starts Ray on every node, trains, and stops Ray however the job ends. Words are settings.
# CONFIG, GPUS, SBATCH_OPTIONS and OUT (folder of the dry run) replace the defaults below.
set -euo pipefail
cd "$(dirname "$0")/.."
demopsd=${DEMOPSD:-.venv/bin/demopsd}
config=${CONFIG:-multi_node}

"$demopsd" train "$config" --dry-run "$@" > "${OUT:-.}/dry-run.txt"
"$demopsd" plan "$config" --gpus "${GPUS:-4x8xh100}" --hours 24 "$@"
# shellcheck disable=SC2086
job=$(sbatch --parsable ${SBATCH_OPTIONS:-} launch/slurm.sbatch "$config" "$@")
echo "job $job: squeue --job $job; its output is slurm-$job.log, Ray's logs are in slurm-$job/"
echo "to stop it with a checkpoint: scancel $job; to go on: the same command with --resume"
