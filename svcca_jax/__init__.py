"""Similarity of neural representations: SVCCA and its relatives."""
