"""Problems small enough to see through, on which each optimiser shows the failure that it was made against."""
