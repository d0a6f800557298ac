"""`python -m tokenmerge_bench` is `tmbench`."""

from tokenmerge_bench.cli import main

main()
