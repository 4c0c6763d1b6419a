"""Windows from the store: sampler, loader, batches; whole images."""
