"""What a training run will take, before it is begun: memory, traffic, time, money, and how large the model should be."""
