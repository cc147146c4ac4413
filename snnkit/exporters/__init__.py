"""Graphs written as the files of other tools."""
