"""A model spec → a model and an example input, safe by default."""

from onebyone.loading.archive import open_program
from onebyone.loading.loaded import Loaded
from onebyone.loading.programs import module_of
from onebyone.loading.specs import load
from onebyone.loading.weights import fit_weights, read_weights

__all__ = ["Loaded", "fit_weights", "load", "module_of", "open_program", "read_weights"]
