"""The page that explains 1×1 convolutions: one file, on the reader's own network and photo."""
