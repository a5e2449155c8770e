"""A network as a file that other runtimes read: one file a target."""
