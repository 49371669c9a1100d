WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "card.json"
"""Files of a model folder."""
