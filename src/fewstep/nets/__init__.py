WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "card.json"
"""Files of a model folder."""
PLANS = "plans"
"""Folder in it with plans that were made for this model, where there are any."""
