"""Files of the ecosystem: what they call a model's layers, and how each kind holds a LoRA. Knows nothing of models."""
