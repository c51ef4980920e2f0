"""Choosing samples without copying them: what is known of each, conditions on it, CLIP scores, near-duplicates."""
