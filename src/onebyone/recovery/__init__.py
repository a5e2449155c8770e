"""Recovery: fine-tune a lighter network towards its original, and towards labels."""
