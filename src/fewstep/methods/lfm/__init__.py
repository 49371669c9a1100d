"""Flow matching in latent space [dao2023lfm]: conditions of its models, and the pieces of its bound."""
