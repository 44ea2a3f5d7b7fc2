"""Published protections of others; a row's module is imported when the row is used, so that names need no torch."""

from uge.methods.baselines.published import Published

BASELINES = (
    Published("em", "em:EM", "error-minimising noise for every image (Huang et al., ICLR 2021)"),
    Published("em-class", "em:EM_CLASS", "error-minimising noise, one pattern per class (Huang et al., ICLR 2021)"),
    Published("tap", "tap:TAP", "targeted adversarial poisoning (Fowl et al., NeurIPS 2021)"),
    Published("tap-untargeted", "tap:TAP_UNTARGETED", "untargeted adversarial poisoning (Fowl et al., NeurIPS 2021)"),
    Published("ntga", "ntga:NTGA", "neural tangent generalisation attack (Yuan and Wu, ICML 2021)"),
    Published("rem", "rem:REM", "robust error-minimising noise (Fu et al., ICLR 2022)"),
    Published("cuda", "cuda:CUDA", "a random convolution for every class (Sadasivan et al., CVPR 2023)"),
    Published("lsp", "lsp:LSP", "linearly separable patches for every class (Yu et al., KDD 2022)"),
    Published("ar", "ar:AR", "autoregressive noise, one process per class (Sandoval-Segura et al., NeurIPS 2022)"),
    Published("ops", "ops:OPS", "one pixel shortcut for every class (Wu et al., ICLR 2023)"),
    Published("pil", "pil:PIL", "noise that a linear network takes for the class (jinlinll/pil, ICLR 2026)"),
    Published("random", "random:RANDOM", "uniform random noise for every image: a control without optimisation"),
    Published("random-class", "random:RANDOM_CLASS", "uniform random noise, one pattern per class: a control"),
)
"""Rows of the table of methods."""

__all__ = ["BASELINES", "Published"]
