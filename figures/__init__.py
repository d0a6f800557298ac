"""One file per figure; each draws from a table of records and nothing else."""
