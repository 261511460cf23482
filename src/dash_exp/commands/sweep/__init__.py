"""Sweeps: cells that are checked before the first one starts, that survive each other's failures, and that can be continued.

The ledger of a sweep is its folder: `sweep.json` lists the cells, and each cell's `result.json` holds its status. So the same
command continues a sweep that was stopped, whatever launcher ran it.
"""
