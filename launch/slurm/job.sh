# shellcheck shell=bash
# What the .sbatch scripts beside it share; sourced in the batch shell of a job.
#
# A job is a row of slices: each goes on from what the one before has finished or saved, and asks
# SLURM to queue the job again unless all is done. It does not ask after a mistake (exit code 2),
# after MAX_RESTARTS, and after MAX_IDLE slices in a row in which nothing new was saved.

[ "${SLURM_JOB_ID:-}" ] || { echo "error: this is for sbatch: sbatch $0 ..." >&2; exit 2; }

MAX_RESTARTS=${MAX_RESTARTS:-100}
MAX_IDLE=${MAX_IDLE:-3}
CONTAINER_FLAGS=${CONTAINER_FLAGS:---nv}

fail() { # fail CODE MESSAGE: ends the job, for good
    echo "error: $2" >&2
    exit "$1"
}

value_of() { # value_of --FLAG ARGUMENTS...: what the last --FLAG VALUE or --FLAG=VALUE says
    local flag=$1 value=
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        "$flag") value=${2:-} ;;
        "$flag"=*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}

inside=() # words in front of every command that needs our Python
if [ "$CONTAINER" ]; then
    read -ra flags <<<"$CONTAINER_FLAGS"
    # shellcheck disable=SC2034 # used by the scripts that source this
    inside=(apptainer exec "${flags[@]}" --bind "$PWD" --pwd "$PWD" "$CONTAINER")
else
    eval "$SETUP" || fail 2 "SETUP: '$SETUP' does not work on $(hostname)"
fi
# The job's own environment, whatever the shell that submitted had; srun passes it on.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_SIZE LOCAL_WORLD_SIZE
export PATH PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL

begin_slice() { # begin_slice OUTPUT_DIR: counts those that begin where the last one began
    record=$1/slurm-slices
    mkdir -p "$1" || fail 2 "--output_dir $1: cannot be made"
    idle=0
    local last_job='' last_idle=0 last_state=''
    [ -e "$record" ] && read -r last_job last_idle last_state <"$record"
    state=$(saved_state)
    if [ "$last_job" = "$SLURM_JOB_ID" ] && [ "$last_state" = "$state" ]; then
        idle=$((last_idle + 1))
    fi
    [ "$idle" -lt "$MAX_IDLE" ] ||
        fail 1 "nothing new was saved in $idle slices: look above, then submit it again"
    echo "$SLURM_JOB_ID $idle $state" >"$record"
    echo "slice ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date -Is)"
}

end_slice() { # end_slice CODE: of what ran; ends the job, or queues it again
    local code=$1
    if [ "$code" -eq 0 ] || [ "$code" -eq 2 ]; then
        rm -f "$record"
        exit "$code"
    fi
    [ "$(saved_state)" = "$state" ] && idle=$((idle + 1))
    [ "$idle" -lt "$MAX_IDLE" ] ||
        fail "$code" "nothing new was saved in $idle slices: look above, then submit it again"
    [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ] ||
        fail "$code" "MAX_RESTARTS = $MAX_RESTARTS are over; submit it again to go on"
    echo "not done (exit code $code): queueing the job again, $(date -Is)"
    # SLURM ends this shell at once, and all that it has started: also who asks, before the answer.
    trap 'exit "$code"' TERM
    (
        trap '' TERM
        scontrol requeue "$SLURM_JOB_ID"
    ) || fail "$code" "SLURM does not queue it again; submit it again to go on"
    sleep 60
    exit "$code"
}
