#!/bin/bash
# The whole path as a row of jobs, each queued behind those that it needs; from the root:
#
#   INPUT='text/**/*.txt' TASK=pair_classification TRAIN=train.tsv EVAL=dev.tsv \
#       launch/slurm/pipeline.sh
#
#   tokenizer --> shards of 128 tokens --> phase 1 --> phase 2 --> scores
#                        `--> shards of 512 tokens ------^   `--> fine-tuning (with TASK)
#
# Called again, it makes what is not there; what is finished is found and kept. What a site sets
# stands at the top of each .sbatch, and may be given here for all: SETUP, CONTAINER,
# SBATCH_PARTITION, SBATCH_ACCOUNT (sbatch's own).
set -euof pipefail # no globs: --input's are for the jobs

INPUT=${INPUT:?names the text, for example INPUT=\'text/**/*.txt\'}
DATA=${DATA:-data/pipeline}                       # gets tokenizer, shards_128, shards_512
RUNS=${RUNS:-runs/pipeline}                       # gets phase1, phase2, and the task's name
VOCAB_SIZE=${VOCAB_SIZE:-30000}
LENGTHS=${LENGTHS:-128 512}                       # of phase 1 and phase 2
MODEL=${MODEL:-configs/model/bert_base.json}
DEEPSPEED_CONFIGS=${DEEPSPEED_CONFIGS:-configs/zero2.json configs/zero2.json} # of both phases
PREPARE_FLAGS=${PREPARE_FLAGS:-}                  # more for launch/prepare_shards.py
PHASE1_FLAGS=${PHASE1_FLAGS:---num_train_steps 900000}
PHASE2_FLAGS=${PHASE2_FLAGS:---num_train_steps 100000 --warmup_steps 1000}
TASK=${TASK:-} TRAIN=${TRAIN:-} EVAL=${EVAL:-}    # of launch/finetune.py; no TASK, no fine-tuning
FINETUNE_FLAGS=${FINETUNE_FLAGS:-}
PREPARE_OPTIONS=${PREPARE_OPTIONS:-}              # more for sbatch: --nodes=4 --ntasks-per-node=32
TRAIN_OPTIONS=${TRAIN_OPTIONS:-}                  # likewise: --nodes=8 --gpus-per-node=8

if [ ! -e launch/slurm/job.sh ]; then
    echo "error: start it in the repository's root, not in $PWD" >&2
    exit 2
fi
[ -z "$TASK" ] || : "${TRAIN:?names the examples of TASK = $TASK}"
read -r short long <<<"$LENGTHS"
read -r zero1 zero2 <<<"$DEEPSPEED_CONFIGS"
mkdir -p "$DATA" "$RUNS"

# queue NAME JOBS SCRIPT...: once all JOBS (a:b:c, or none) have done well; if one fails, never.
queue() {
    local name=$1 after=$2 job
    shift 2
    job=$(sbatch --parsable --kill-on-invalid-dep=yes ${after:+--dependency=afterok:$after} \
        --job-name="$name" --output="$RUNS/%x-%j.log" "$@")
    printf '%-12s job %-8s %s\n' "$name" "$job" "${after:+after ${after//:/, }}" >&2
    echo "$job"
}

# Options and flags are lists of words.
# shellcheck disable=SC2086,SC2206
{
    prepare=(launch/slurm/prepare_shards.sbatch --input "$INPUT" --token_store "$DATA/token_store"
        --tokenizer "$DATA/tokenizer/tokenizer.model" $PREPARE_FLAGS)
    train=(launch/slurm/pretrain.sbatch --model "$MODEL")
    tokenizer=
    if [ ! -e "$DATA/tokenizer/tokenizer.json" ]; then
        tokenizer=$(queue tokenizer "" launch/slurm/train_tokenizer.sbatch --input "$INPUT" \
            --output_dir "$DATA/tokenizer" --vocab_size "$VOCAB_SIZE")
    fi
    shards1=$(queue "shards_$short" "$tokenizer" $PREPARE_OPTIONS "${prepare[@]}" \
        --sequence_length "$short" --output_dir "$DATA/shards_$short")
    shards2=$(queue "shards_$long" "$shards1" $PREPARE_OPTIONS "${prepare[@]}" \
        --sequence_length "$long" --output_dir "$DATA/shards_$long")
    phase1=$(queue phase1 "$shards1" $TRAIN_OPTIONS "${train[@]}" --deepspeed_config "$zero1" \
        --shards "$DATA/shards_$short" --output_dir "$RUNS/phase1" $PHASE1_FLAGS)
    phase2=$(queue phase2 "$phase1:$shards2" $TRAIN_OPTIONS "${train[@]}" \
        --deepspeed_config "$zero2" --shards "$DATA/shards_$long" --output_dir "$RUNS/phase2" \
        --init_from "$RUNS/phase1" $PHASE2_FLAGS)
    queue scores "$phase2" launch/slurm/evaluate.sbatch --checkpoint "$RUNS/phase2" \
        --shards "$DATA/shards_$long" --json "$RUNS/scores.json" >/dev/null
    if [ "$TASK" ]; then
        queue finetune "$phase2" launch/slurm/finetune.sbatch --task "$TASK" \
            --checkpoint "$RUNS/phase2" --output_dir "$RUNS/$TASK" --train "$TRAIN" \
            ${EVAL:+--eval "$EVAL"} $FINETUNE_FLAGS >/dev/null
    fi
}
echo "squeue --me shows them; their logs are in $RUNS" >&2
