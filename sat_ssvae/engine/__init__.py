"""What every training here shares: the run, DeepSpeed engines, checkpoints, EMA, logs, votes, seeds."""
