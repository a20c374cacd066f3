"""Examples: where they come from, how prompts are written, how prompts and responses become token ids."""
