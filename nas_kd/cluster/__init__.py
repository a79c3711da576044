"""Trials on Ray, on one machine or many."""
