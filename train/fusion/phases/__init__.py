"""The seven phases of the fusion, one module a phase."""
