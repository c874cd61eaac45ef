"""Experiments on small models: what the field predicts, tried here, with seeds and a plot each."""
