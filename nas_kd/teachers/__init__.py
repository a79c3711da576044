"""Frozen codecs to distil from, what they make of the training pictures, and how one is trained."""
