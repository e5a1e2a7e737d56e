"""Editors on pretrained models and public data: every record's scores, and their page."""
