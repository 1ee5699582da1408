"""Generation: a base model, a scheduler and an autoencoder together."""
