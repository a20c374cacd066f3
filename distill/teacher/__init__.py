"""The teacher's side of a divergence: run on each batch, or its hidden states stored once."""
