"""The checkpoint store and what is written in it."""
