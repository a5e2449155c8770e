"""Pure mathematics on tensors: one file a factorisation."""
