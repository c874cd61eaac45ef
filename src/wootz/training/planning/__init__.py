"""What a training run takes, before it is begun: memory, traffic, time, money, and how large the model should be."""
