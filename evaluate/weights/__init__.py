"""The fusion that comes with the package, as `export` writes a run; see docs/bundled-experts.md."""
