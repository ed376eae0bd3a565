"""Runs steps as jobs of a Slurm cluster: nothing lost, nothing run twice.

What happened is decided by files that the jobs themselves write (`attempts`); what squeue, sacct and scontrol say
only explains it (`truth`). All state of a submission is files in one folder (`folder`), so a driver may die at any
instruction and another adopts the run.

    options, groups   what is asked for: settings of the site, and tasks in groups with dependencies
    script            the batch script of a group
    commands, parsing Slurm's commands: making argv, calling, reading answers
    states            Slurm's states and reasons → what they mean here, and what is retried
    attempts, task    claim, heartbeat and end of an attempt; `task` is the program that runs on the node
    folder, submit    state of a submission on disk; submitting exactly once
    dependencies, retries, rounds  what waits for what; what is submitted again, and with what changed
    listener, budget  asking Slurm about everything at once, seldom
    truth, tracked, outcome, runner  what came of each task; the runner
    gpu, probe        whether the GPU is the one asked for; how this cluster is asked for one
    interpreter       what the interpreter of the jobs has
    rank, node        ranks over several nodes; small questions to a node
    remote            commands through ssh, files through rsync
    sim, simulation   a cluster inside this process
"""
