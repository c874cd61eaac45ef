"""The parts of models: each file one idea, as a frozen config and the module it builds."""
