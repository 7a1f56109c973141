# shellcheck shell=bash
# Ranks on all nodes of a job; sourced by pretrain.sbatch, finetune.sbatch and evaluate.sbatch.

if [ ! -e launch/slurm/job.sh ]; then
    echo "error: submit from the repository's root, not from $PWD" >&2
    exit 2
fi
. launch/slurm/job.sh

num_ranks=$((SLURM_NNODES * RANKS_PER_NODE))
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The first free one here, on the first node, in every slice anew; below what Linux gives by itself.
first_port=$((20000 + SLURM_JOB_ID % 12000))
MASTER_PORT=$("${inside[@]}" python -c "from dist_bert.distributed.rendezvous import free_port
print(free_port($first_port))") || fail 2 "no port of $(hostname) can be chosen for the ranks"
export MASTER_ADDR MASTER_PORT

train() { # train SCRIPT ARGUMENTS...: one slice
    output_dir=$(value_of --output_dir "$@")
    [ "$output_dir" ] || fail 2 "--output_dir: must be given, the job looks for checkpoints there"
    # A mistake in the settings ends the job now, before any rank is started.
    WORLD_SIZE=$num_ranks "${inside[@]}" python "$@" --dry_run >/dev/null || exit
    begin_slice "$output_dir"
    start_ranks "$@" & # in the background: bash takes no signal while it waits for a command
    wait $!
    code=$?
    # The runs' own word counts for more than an exit code, which launchers may drop.
    if [ $code -eq 0 ] && [ "$(find "$output_dir" -name interrupted -print -quit)" ]; then
        code=85
    fi
    end_slice $code
}

saved_state() { # changes with every checkpoint, and with every run of a search that has ended
    find "$output_dir" \( -path '*/checkpoints/latest' -o -name results.json \) -exec cat {} + |
        sort | cksum | tr ' ' -
}

# srun's exit code is the highest of its tasks'. When one ends, the others get 30 s to end by
# themselves and to tell why: else the code would be that of their being killed.
start_ranks() { # start_ranks SCRIPT ARGUMENTS...
    local step=(--nodes="$SLURM_NNODES" --kill-on-bad-exit=0 --wait=30)
    local cpus=$((SLURM_CPUS_ON_NODE > RANKS_PER_NODE ? SLURM_CPUS_ON_NODE / RANKS_PER_NODE : 1))
    # USR1, sent ahead of the time limit, is for the ranks, which install a handler; until they do,
    # and in launchers, it would be deadly.
    # shellcheck disable=SC2016 # for the shell of each task
    local quietly='trap "" USR1; exec "${@/#NODE_RANK/$SLURM_NODEID}"'
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
    case $LAUNCHER in
    srun) # a task is a rank (dist_bert/common/slurm.py)
        srun "${step[@]}" --ntasks="$num_ranks" --ntasks-per-node="$RANKS_PER_NODE" \
            --cpus-per-task="$cpus" bash -c "$quietly" rank "${inside[@]}" python "$@"
        ;;
    deepspeed) # a task is a node's launcher, which starts the ranks; it takes the world from a file
        scontrol show hostnames "$SLURM_JOB_NODELIST" |
            sed "s/$/ slots=$RANKS_PER_NODE/" >"$output_dir/slurm-hosts"
        srun "${step[@]}" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
            --cpus-per-task="$SLURM_CPUS_ON_NODE" bash -c "$quietly" launcher "${inside[@]}" \
            deepspeed --no_ssh --node_rank NODE_RANK --hostfile "$output_dir/slurm-hosts" \
            --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@"
        ;;
    *) fail 2 "LAUNCHER = $LAUNCHER: must be srun or deepspeed" ;;
    esac
}
