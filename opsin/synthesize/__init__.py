"""Instruction data from pictures: the symbolic context, and teachers that turn it into conversations."""
