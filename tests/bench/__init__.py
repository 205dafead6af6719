"""`python -m tests.bench` (or `make bench`): qnb beside its peers, on this machine, in one run."""
