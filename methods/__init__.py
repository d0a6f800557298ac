"""One file per method. A file dropped here is found by name; see `tokenmerge_bench.reducers` for the contract."""
