"""Titles under which `robust --help` lists the commands."""

EXPERIMENTS = "Train and reproduce"
EVALUATION = "Evaluate"
RESULTS = "Read and check results"
CLUSTER = "SLURM"
HELP = "Find out and extend"
