"""A trained student that answers."""
