"""Video in and out: files, WebDataset shards, the packer that makes them, and the demo's clips."""
