"""Names <-> names: how one module is called, and laid out, by those who store it."""
