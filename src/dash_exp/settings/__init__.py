"""Checks of the settings, before anything is loaded, and how they are written on the command line. Imports nothing heavy. May
import `core`."""
