"""The command line: `app.py` and one small file per command."""
