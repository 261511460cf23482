"""Ranks: the processes of one run, one for each device, and what they exchange. May import `core`."""
