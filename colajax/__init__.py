"""colajax: training, sampling and conversion of Cola DLM, a continuous latent diffusion language model."""
