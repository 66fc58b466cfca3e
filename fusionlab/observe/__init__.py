"""Evidence: what was compiled, moved and measured."""
