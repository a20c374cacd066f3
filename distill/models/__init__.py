"""Where weights come from, and the tokenizers that go with them."""
