"""What every trainer shares: the run, DeepSpeed engines, checkpoints, EMA, logs, votes, seeds."""
