"""Worked solutions that are whole programs; the exercises print them and the notebooks continue with them."""
