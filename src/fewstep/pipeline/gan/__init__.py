"""Generators that make an image in one network call: their settings, their training, and what it is judged by."""
