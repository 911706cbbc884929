"""Region-Adaptive Sampling for Diffusion Transformers."""
