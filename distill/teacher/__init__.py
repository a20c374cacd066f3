"""The teacher's hidden states and output head: from a forward pass on each batch, or stored once."""
