"""Models of pairs of images that share a meaning [kumar2024semantica]: making pairs, and what models vary."""
