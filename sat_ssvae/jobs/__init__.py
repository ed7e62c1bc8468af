"""Work on many items: where it runs, on one machine or on a cluster, and what survives a crash."""
