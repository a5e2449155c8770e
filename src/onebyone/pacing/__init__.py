"""Planning by the clock of the runtime that will run the network."""
