"""Making models: the trainer, and the studies that train small ones to see what an architecture can do."""
