"""Edits asked after they are made: taken or not, what else moved, what to try instead."""
