"""Ranks: the processes of one run, one for each device, on one machine or several; how they are started, meet and notice that
one has gone; what they exchange; and where the sampling servers of their job are. May import `core`.
"""
