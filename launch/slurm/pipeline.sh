#!/bin/bash
# The whole path as a row of jobs, each queued behind those that it needs; from the root:
#
#   INPUT='text/**/*.txt' TASK=pair_classification TRAIN=train.tsv EVAL=dev.tsv \
#       launch/slurm/pipeline.sh
#
#   tokenizer --> shards of 128 and 512 tokens --> pretraining by a recipe --> scores
#                                                           `--> fine-tuning (with TASK)
#
# Called again, it makes what is not there; what is finished is found and kept. What a site sets
# stands at the top of each .sbatch, and may be given here for all: SETUP, CONTAINER,
# SBATCH_PARTITION, SBATCH_ACCOUNT (sbatch's own).
set -euof pipefail # no globs: --input's are for the jobs

INPUT=${INPUT:?names the text, for example INPUT=\'text/**/*.txt\'}
DATA=${DATA:-data}                                # gets tokenizer, shards_128, shards_512
RUNS=${RUNS:-runs/pipeline}                       # gets pretrain, and the task's name
VOCAB_SIZE=${VOCAB_SIZE:-30000}
LENGTHS=${LENGTHS:-128,512}                       # of samples, as the recipe has them
RECIPE=${RECIPE:-configs/recipes/bert.json}       # its phases read DATA/shards_128 and so on
MODEL=${MODEL:-configs/model/bert_base.json}
DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG:-configs/zero2.json}
PREPARE_FLAGS=${PREPARE_FLAGS:-}                  # more for launch/prepare_shards.py
PRETRAIN_FLAGS=${PRETRAIN_FLAGS:-}                # more for launch/pretrain.py
TASK=${TASK:-} TRAIN=${TRAIN:-} EVAL=${EVAL:-}    # of launch/finetune.py; no TASK, no fine-tuning
FINETUNE_FLAGS=${FINETUNE_FLAGS:-}
PREPARE_OPTIONS=${PREPARE_OPTIONS:-}              # more for sbatch: --nodes=4 --ntasks-per-node=32
TRAIN_OPTIONS=${TRAIN_OPTIONS:-}                  # likewise: --nodes=8 --gpus-per-node=8

if [ ! -e launch/slurm/job.sh ]; then
    echo "error: start it in the repository's root, not in $PWD" >&2
    exit 2
fi
[ -z "$TASK" ] || : "${TRAIN:?names the examples of TASK = $TASK}"
shards=$DATA/shards
for length in ${LENGTHS//,/ }; do
    last=${shards}_$length # the folder of a single length is the given one
    [ "$length" != "$LENGTHS" ] || last=$shards
    if ! grep -q "\"$last\"" "$RECIPE"; then
        echo "error: RECIPE = $RECIPE: no phase reads $last, which LENGTHS = $LENGTHS makes" >&2
        exit 2
    fi
done
mkdir -p "$DATA" "$RUNS"

# queue NAME JOBS SCRIPT...: once all JOBS (a:b:c, or none) have done well; if one fails, never.
queue() {
    local name=$1 after=$2 job
    shift 2
    job=$(sbatch --parsable --kill-on-invalid-dep=yes ${after:+--dependency=afterok:$after} \
        --job-name="$name" --output="$RUNS/%x-%j.log" "$@") || return # $(queue) has no set -e
    job=${job%%;*} # several clusters: "id;cluster"
    printf '%-12s job %-8s %s\n' "$name" "$job" "${after:+after ${after//:/, }}" >&2
    echo "$job"
}

# Options and flags are lists of words.
# shellcheck disable=SC2086,SC2206
{
    tokenizer=
    if [ ! -e "$DATA/tokenizer/tokenizer.json" ]; then
        tokenizer=$(queue tokenizer "" launch/slurm/train_tokenizer.sbatch --input "$INPUT" \
            --output_dir "$DATA/tokenizer" --vocab_size "$VOCAB_SIZE")
    fi
    prepared=$(queue shards "$tokenizer" $PREPARE_OPTIONS launch/slurm/prepare_shards.sbatch \
        --input "$INPUT" --tokenizer "$DATA/tokenizer/tokenizer.model" --output_dir "$shards" \
        --sequence_length "$LENGTHS" $PREPARE_FLAGS)
    pretrained=$(queue pretrain "$prepared" $TRAIN_OPTIONS launch/slurm/pretrain.sbatch \
        --model "$MODEL" --deepspeed_config "$DEEPSPEED_CONFIG" --recipe "$RECIPE" \
        --output_dir "$RUNS/pretrain" $PRETRAIN_FLAGS)
    queue scores "$pretrained" launch/slurm/evaluate.sbatch --checkpoint "$RUNS/pretrain" \
        --shards "$last" --json "$RUNS/scores.json" >/dev/null
    if [ "$TASK" ]; then
        queue finetune "$pretrained" launch/slurm/finetune.sbatch --task "$TASK" \
            --checkpoint "$RUNS/pretrain" --output_dir "$RUNS/$TASK" --train "$TRAIN" \
            ${EVAL:+--eval "$EVAL"} $FINETUNE_FLAGS >/dev/null
    fi
}
echo "squeue --me shows them; their logs are in $RUNS" >&2
