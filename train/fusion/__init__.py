"""The network that is trained: phases 2 to 7."""
