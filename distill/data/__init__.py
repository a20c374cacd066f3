"""Examples: where they come from, how a prompt is written, how both become token ids."""
