"""Where a token stands: what is added to embeddings, how queries and keys are turned, what biases the scores."""
