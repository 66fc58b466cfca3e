"""Worked solutions that are programs of their own; the exercises print them and the notebooks go on with them."""
