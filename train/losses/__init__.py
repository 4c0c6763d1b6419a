"""The losses and their weighted sum: nine that measure the distance to HR, and two that need a teacher.

Each is a module of (sr, hr), both (B, 3, H, W) in 0..1, that returns one number. They are scaled so that a
weight means what it says: on white noise, the values of all but `psnr` and the two in feature space lie near L1's.
"""
