"""What any training here needs: DeepSpeed engine, checkpoints, average, log, stability."""
