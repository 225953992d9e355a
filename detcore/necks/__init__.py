"""Necks: the backbone's maps in, a feature pyramid out."""
