"""Takes frames on a lease, runs their calls in lanes, stores outcomes, then acks."""
