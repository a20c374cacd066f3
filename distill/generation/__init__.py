"""Writing responses: one engine for training and evaluation."""
