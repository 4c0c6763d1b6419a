"""The bundled experts' weights."""
