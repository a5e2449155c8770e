"""What a network costs: counted, measured, and placed under the limits of the machine."""
