"""The makers of each kind of artifact."""
