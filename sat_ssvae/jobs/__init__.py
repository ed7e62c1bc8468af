"""Work on many items, on one machine or on a cluster, that survives crashes."""
