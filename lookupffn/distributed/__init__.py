"""Several processes: who does what, sharded models, sums that do not depend on their number."""
