"""The page that explains 1×1 convolutions: one self-contained file, on the reader's own network and photo."""
