"""Fetch, probe, decode and sample videos, and crop their frames."""
