"""Expert entries that come with the package, as YAML."""
