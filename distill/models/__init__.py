"""Creating and loading weights and tokenizers."""
