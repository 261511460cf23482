"""Ranks: the processes of one run, one for each device, on one machine or several; how they are started, meet and notice that
one has gone; and what they exchange. May import `core`.
"""
