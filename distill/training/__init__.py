"""Training: the objective, the batches, the Trainer and the stage around them."""
