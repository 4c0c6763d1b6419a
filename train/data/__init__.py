"""Windows from the store: sampler, loader, batches; whole images, and which are held out."""
