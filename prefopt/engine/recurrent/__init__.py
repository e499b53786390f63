"""Recurrent layers in the packed row: the tree in waves, each branch from the state it leaves."""
