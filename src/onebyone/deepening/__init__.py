"""Depth from the saving: insertions that change no output, where they go, and how they are chosen."""
