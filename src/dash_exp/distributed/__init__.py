"""Ranks: the processes of one run, each with one device, and what they exchange. May import `core`."""
