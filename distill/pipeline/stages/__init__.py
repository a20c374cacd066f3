"""How each kind of artifact is made."""
