"""Work on many items: which process does it, on one machine or on a cluster, and what is left of it after a crash."""
