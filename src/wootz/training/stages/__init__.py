"""What a recipe is made of: each stage reads what the one before left in the run's folder, and can be run again."""
