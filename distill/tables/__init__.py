"""Results: long files first, tables made from them."""
