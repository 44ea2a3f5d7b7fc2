"""Published protections of others; a row's module is imported when the row is used, so that names need no torch."""

from uge.methods.baselines.published import Published

BASELINES = (
    Published("em", "em:EM", "Error-minimising noise for every image (Huang et al., ICLR 2021)."),
    Published("em-class", "em:EM_CLASS", "Error-minimising noise, one pattern per class (Huang et al., ICLR 2021)."),
    Published("tap", "tap:TAP", "Targeted adversarial poisoning (Fowl et al., NeurIPS 2021)."),
    Published("tap-untargeted", "tap:TAP_UNTARGETED", "Untargeted adversarial poisoning (Fowl et al., NeurIPS 2021)."),
    Published("ntga", "ntga:NTGA", "Neural tangent generalisation attack (Yuan and Wu, ICML 2021)."),
    Published("rem", "rem:REM", "Robust error-minimising noise (Fu et al., ICLR 2022)."),
    Published("cuda", "cuda:CUDA", "A random convolution for every class (Sadasivan et al., CVPR 2023)."),
    Published("lsp", "lsp:LSP", "Linearly separable patches for every class (Yu et al., KDD 2022)."),
    Published("ar", "ar:AR", "Autoregressive noise, one process per class (Sandoval-Segura et al., NeurIPS 2022)."),
    Published("ops", "ops:OPS", "One pixel shortcut for every class (Wu et al., ICLR 2023)."),
    Published("pil", "pil:PIL", "Noise that a linear network takes for the class (jinlinll/pil, ICLR 2026)."),
    Published("random", "random:RANDOM", "Uniform random noise for every image: a control without optimisation."),
    Published("random-class", "random:RANDOM_CLASS", "Uniform random noise, one pattern per class: a control."),
)
"""Rows of the table of methods."""

__all__ = ["BASELINES", "Published"]
