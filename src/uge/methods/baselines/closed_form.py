"""Noise that needs no deep network: drawn per image or class, from statistics of a class, or from a linear surrogate.

AR (Sandoval-Segura et al., NeurIPS 2022, arXiv 2206.03693), CUDA (Sadasivan, Soltanolkotabi and Feizi, CVPR 2023, arXiv
2303.04278), LSP (Yu, Zhang, Chen, Yin and Liu, KDD 2022, arXiv 2111.00898), OPS (Wu, Chen, Xie and Huang, ICLR 2023,
arXiv 2205.12141), PIL (code of jinlinll/pil, ICLR 2026), and uniform random noise: a control that shows the effect of
optimisation.
"""

import dataclasses
import itertools
import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from uge.data.loader import fetch
from uge.data.store import PixelStore, Records
from uge.errors import UsageError
from uge.learning.recipes import Recipe
from uge.learning.training import fit
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings, reference_radius, scaled
from uge.runtime import Runtime, seeded, stream

_FILTERED = 2**22  # Values of a filtered batch, at most.
_DRAWN = 256  # Processes that are drawn at a time.
_RARE = 1000  # At least one in so many processes must be bounded.


class ArSettings(Settings):
    """Settings of AR.

    Attributes:
        radius: L2 length of a perturbation of 32 × 32 × 3 values in [0, 1] units; it grows with the square
            root of the number of values.
        crop: Rows above and columns left of the image that are generated and cut off.
        bound: Largest root mean square of the noise that a process makes from standard normal starts; processes
            above it are not used (the largest of the published processes has 2.5).
        pool: Processes that are drawn per class, from which the most different are chosen.
    """

    radius: float = Field(1.0, gt=0)
    crop: int = Field(4, ge=0)
    bound: float = Field(2.5, gt=0)
    pool: int = Field(10, ge=1)


def autoregress(coefficients: Tensor, start: Tensor) -> Tensor:
    """Run each process from its start: every value is the weighted sum of the 8 before it in its 3 × 3 window.

    Args:
        coefficients: ... × 3 × 3, the last entry 0.
        start: ... × size × size; only its first two rows and columns are used.

    Returns:
        Like ``start``; x[i, j] = Σ b[k, l] · x[i - 2 + k, j - 2 + l] from the third row and column on.
    """
    out = start.clone()
    for row in range(2, start.shape[-2]):
        above = out[..., row - 2 : row, :].unfold(-1, 3, 1)  # ... × 2 × (size - 2) × 3
        ready = torch.einsum("...kjl,...kl->...j", above, coefficients[..., :2, :])
        for column in range(2, start.shape[-1]):
            before = out[..., row, column - 2 : column] * coefficients[..., 2, :2]
            out[..., row, column] = ready[..., column - 2] + before.sum(-1)
    return out


def response(filters: Tensor, signals: Tensor) -> Tensor:
    """Violation of processes by signals: the sum of the positive part of the filtered signal.

    Args:
        filters: processes × channels × 3 × 3, the last entry of each channel 0.
        signals: count × channels × size × size.

    Returns:
        count × processes; 0 where a process made the signal.
    """
    kernel = filters.clone()
    kernel[..., 2, 2] = -1
    count = max(1, _FILTERED // (len(kernel) * signals[0, 0].numel()))
    return torch.cat([F.conv2d(part, kernel).relu().sum((2, 3)) for part in torch.split(signals, count)])


def class_processes(classes: int, channels: int, size: int, settings: ArSettings, seed: int) -> Tensor:
    """One stable process per class and channel, chosen greedily to be unlike those before.

    Returns:
        classes × channels × 3 × 3, float64.

    Raises:
        UsageError: Hardly any process stays within ``bound``.
    """
    pool = _bounded_processes(settings.pool * classes * channels, size, settings, seed).reshape(-1, channels, 3, 3)
    signals = scaled(_process_noise(pool, size, settings, stream(seed, "ar-trial")), 1.0).float()
    filters = pool.float()
    chosen = [0]
    distance = torch.full((len(pool),), torch.inf)
    while len(chosen) < classes:
        last = chosen[-1]
        there = response(filters[last : last + 1], signals)[:, 0]
        back = response(filters, signals[last : last + 1])[0]
        distance = torch.minimum(distance, torch.minimum(there, back))
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return pool[torch.tensor(chosen)]


def _bounded_processes(count: int, size: int, settings: ArSettings, seed: int) -> Tensor:
    """Processes of one channel within the bound: normal coefficients with sum 1, so that a constant stays as it is."""
    bounded = torch.zeros(0, 3, 3, dtype=torch.float64)
    number = 0
    while len(bounded) < count:
        if len(bounded) < number * _DRAWN // _RARE:
            raise UsageError(
                f"hardly any process of the ar baseline stays within its setting bound, {settings.bound:g}; raise it"
            )
        generator = stream(seed, "ar-processes", number)
        drawn = torch.randn(_DRAWN, 3, 3, dtype=torch.float64, generator=generator)
        drawn[:, 2, 2] = 0
        drawn /= drawn.sum((1, 2), keepdim=True)
        noise = _process_noise(drawn.expand(2, -1, -1, -1), size, settings, generator)
        bounded = torch.cat([bounded, drawn[(noise.pow(2).mean((2, 3)).sqrt() < settings.bound).all(0)]])
        number += 1
    return bounded[:count]


def _process_noise(processes: Tensor, size: int, settings: ArSettings, generator: torch.Generator) -> Tensor:
    # Processes are ... × 3 × 3, start from standard normal values and give ... × size × size.
    whole = size + settings.crop
    start = torch.randn(*processes.shape[:-2], whole, whole, dtype=torch.float64, generator=generator)
    return autoregress(processes, start)[..., settings.crop :, settings.crop :]


def _autoregressive_noise(material: Material, settings: ArSettings) -> Records:
    store = material.store
    processes = class_processes(len(store.classes), store.channels, store.size, settings, material.seed)

    def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        draw = stream(material.seed, "ar-noise", int(indices[0]))
        noise = _process_noise(processes[labels.cpu()], store.size, settings, draw)
        return scaled(noise, reference_radius(settings.radius, store)).float().to(x.device)

    return material.filled(change)


AR = Baseline(
    _autoregressive_noise,
    norm="L2",
    rho=1.0,
    scope="sample",
    about=(
        "AR: fresh noise for every image from the autoregressive process of its class (Sandoval-Segura, Singla, "
        "Geiping, Goldblum, Goldstein and Jacobs, NeurIPS 2022)."
    ),
    settings=ArSettings,
)


class CudaSettings(Settings):
    """Settings of CUDA.

    Attributes:
        blur: Filter entries are uniform in [0, ``blur``].
        centre: Value of one random entry of each filter.
        kernel: Side of the filters in pixels.
    """

    blur: float = Field(0.3, gt=0)
    centre: float = Field(1.0, gt=0)
    kernel: int = Field(3, ge=1)


def class_filters(classes: int, settings: CudaSettings, seed: int) -> Tensor:
    """One filter per class, classes × kernel × kernel: the key is the seed."""
    generator = stream(seed, "cuda-filters")
    entries = settings.kernel**2
    filters = settings.blur * torch.rand(classes, entries, generator=generator)
    centre = torch.randint(entries, (classes, 1), generator=generator)
    return filters.scatter(1, centre, settings.centre).reshape(classes, settings.kernel, settings.kernel)


def blurred(x: Tensor, filters: Tensor) -> Tensor:
    """conv(x) / max(conv(x)) of every image with its own filter, the same for all channels.

    Args:
        x: Pixels in [0, 1], batch × channels × height × width; outside are zeros.
        filters: batch × kernel × kernel.

    Returns:
        Pixels in [0, 1], same shape; a black image stays black.
    """
    weight = filters.repeat_interleave(x.shape[1], 0)[:, None]
    around = filters.shape[1] - 1
    padded = F.pad(x, (around // 2, around - around // 2) * 2).flatten(0, 1)[None]
    out = F.conv2d(padded, weight, groups=len(weight)).reshape(x.shape)
    return out / out.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)


def _class_blur(material: Material, settings: CudaSettings) -> Records:
    filters = class_filters(len(material.store.classes), settings, material.seed).to(material.store.device)
    return material.filled(lambda indices, x, labels: blurred(x, filters[labels]) - x)


CUDA = Baseline(
    _class_blur,
    norm="none",
    rho=1.0,
    scope="class",
    about=(
        "CUDA: every image is convolved with the random filter of its class (Sadasivan, Soltanolkotabi and Feizi, "
        "CVPR 2023)."
    ),
    settings=CudaSettings,
)


class LspSettings(Settings):
    """Settings of LSP.

    Attributes:
        patch: Side of the patches of one colour, in pixels.
        radius: L2 length of a perturbation of 32 × 32 × 3 values in [0, 1] units (6/255 on average); it
            grows with the square root of the number of values.
        spread: Standard deviation within a class, where the class's own colours are ±1 (published: centres
            at ±10, spread of about 4).
    """

    patch: int = Field(8, ge=1)
    radius: float = Field(1.304, gt=0)
    spread: float = Field(0.4, ge=0)


def patches(colours: Tensor, size: int, patch: int, radius: float) -> Tensor:
    """Grids of colours as perturbations of one L2 length.

    Args:
        colours: batch × channels × cells × cells.
        size: Side of an image in pixels; the last cells are cut off where it is no multiple of ``patch``.
        patch: Side of a cell in pixels.
        radius: L2 length in [0, 1] units.

    Returns:
        batch × channels × size × size in [0, 1] units.
    """
    return scaled(colours.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :size, :size], radius)


def class_centres(classes: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Colours of ±1 for every class, classes × ``shape``; no two classes have the same colours.

    Raises:
        UsageError: There are fewer such patterns than classes.
    """
    if 2 ** math.prod(shape) < classes:
        raise UsageError(
            f"the lsp baseline has only {2 ** math.prod(shape)} patterns for {classes} classes; lower its setting patch"
        )
    generator = stream(seed, "lsp-centres")
    centres = torch.randint(2, (classes, *shape), generator=generator)
    taken = set[tuple[int, ...]]()
    for centre in centres.flatten(1):
        while tuple(centre.tolist()) in taken:
            centre.copy_(torch.randint(2, centre.shape, generator=generator))
        taken.add(tuple(centre.tolist()))
    return centres * 2.0 - 1


def _separable_patches(material: Material, settings: LspSettings) -> Records:
    store = material.store
    cells = -(-store.size // settings.patch)
    shape = (store.channels, cells, cells)
    centres = class_centres(len(store.classes), shape, material.seed)

    def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        drawn = torch.randn(len(indices), *shape, generator=stream(material.seed, "lsp-colours", int(indices[0])))
        colours = centres[labels.cpu()] + settings.spread * drawn
        return patches(colours, store.size, settings.patch, reference_radius(settings.radius, store)).to(x.device)

    return material.filled(change)


LSP = Baseline(
    _separable_patches,
    norm="L2",
    rho=1.0,
    scope="sample",
    about=(
        "LSP: patches of one colour, drawn around colours of the class, so that a linear rule tells classes apart "
        "(Yu, Zhang, Chen, Yin and Liu, KDD 2022)."
    ),
    settings=LspSettings,
)


class OpsSettings(Settings):
    """Settings of OPS.

    Attributes:
        pixels: Pixels that are replaced in every image.
    """

    pixels: int = Field(1, ge=1)


def corner_colours(channels: int) -> Tensor:
    """Colours with every channel at 0 or 1; 2^channels × channels."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=channels)), dtype=torch.float64)


def scores(mean: Tensor, square: Tensor) -> Tensor:
    """Scores of all colours at every pixel of a class: E|c - x| / std|c - x|.

    Mean and deviation are over the class's images and over channels. The score is infinite where all images agree
    with one another and differ from the colour.

    Args:
        mean: E[x] per channel, height and width, x in [0, 1].
        square: E[x²], same shape.

    Returns:
        colours × height × width.
    """
    colours = corner_colours(len(mean)).to(mean.device)[:, :, None, None]
    # For c = 0 the distance is x, for c = 1 it is 1 - x: both moments follow from those of x.
    distance = torch.where(colours == 0, mean, 1 - mean).mean(1)
    squared = torch.where(colours == 0, square, 1 - 2 * mean + square).mean(1)
    deviation = (squared - distance * distance).clamp_min(0).sqrt()
    return torch.where(distance < 1e-9, torch.zeros_like(distance), distance / deviation.clamp_min(1e-9))


def choose(material: Material, pixels: int) -> Tensor:
    """Colours of the pixels to replace, per class; no two classes replace the same pixel by the same colour.

    Returns:
        classes × channels × height × width, 0 or 1; NaN for all pixels that stay.
    """
    store = material.store
    # Mean of x and of x² per class: each classes × channels × height × width, x in [0, 1].
    moments = torch.zeros(2, len(store.classes), *store.pixels.shape, dtype=torch.float64, device=store.device)
    for batch in (fetch(store, indices) for indices in material.chunks()):
        x = batch.x.double()
        moments.index_add_(1, batch.y, torch.stack([x, x * x]))
    moments /= torch.bincount(store.labels, minlength=len(store.classes)).clamp_min(1)[:, None, None, None]
    mean, square = moments
    colours = corner_colours(mean.shape[1]).to(mean.device)
    taken = torch.zeros(len(colours), *mean.shape[2:], dtype=torch.bool, device=mean.device)
    replacements = torch.full_like(mean, torch.nan)
    for class_mean, class_square, replacement in zip(mean, square, replacements, strict=True):
        score = scores(class_mean, class_square).masked_fill(taken, -1.0)
        for _ in range(min(pixels, score[0].numel())):
            colour, row, column = (int(i) for i in torch.unravel_index(score.flatten().argmax(), score.shape))
            replacement[:, row, column] = colours[colour]
            taken[colour, row, column] = True
            score[:, row, column] = -1.0  # Another colour for the same pixel would undo the first.
    return replacements


def _pixel_shortcut(material: Material, settings: OpsSettings) -> Records:
    replacements = choose(material, settings.pixels).float()
    return material.filled(lambda indices, x, labels: (replacements[labels] - x).nan_to_num())


OPS = Baseline(
    _pixel_shortcut,
    norm="none",
    rho=1.0,
    scope="class",
    about=(
        "OPS: in all images of a class one pixel is replaced by the colour from which it differs most consistently "
        "(Wu, Chen, Xie and Huang, ICLR 2023)."
    ),
    settings=OpsSettings,
)


def _uniform(count: int, material: Material, *names: str | int) -> Tensor:
    """``count`` patterns in [0, 1] units; whole levels between plus and minus the budget are equally likely."""
    shape = (count, *material.store.pixels.shape)
    most = material.budget.levels
    levels = torch.randint(-most, most + 1, shape, generator=stream(material.seed, *names))
    return levels.to(material.store.device) / 255


def _sample_wise(material: Material, settings: Settings) -> Records:
    return material.filled(lambda indices, x, labels: _uniform(len(indices), material, "random-noise", int(indices[0])))


def _class_wise(material: Material, settings: Settings) -> Records:
    patterns = _uniform(len(material.store.classes), material, "random-noise-class")
    return material.filled(lambda indices, x, labels: patterns[labels])


RANDOM = Baseline(
    _sample_wise,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="Uniform random noise, another for every image: a control without optimisation.",
    settings=Settings,
)
RANDOM_CLASS = dataclasses.replace(
    RANDOM,
    function=_class_wise,
    scope="class",
    about="Uniform random noise, one pattern per class: a control without optimisation.",
)


_PUBLISHED_IMAGES = 50_000  # Size of the training set that the settings were published for.


class PilSettings(Settings):
    """Settings of PIL.

    Attributes:
        epochs: Epochs of the linear surrogate.
        lr: Learning rate of the surrogate (SGD, cosine).
        batch_size: Batch size of the surrogate for 50,000 images; smaller in proportion for fewer images, so that
            it takes as many steps (at least 8 images).
        steps: Sign steps on every perturbation.
        step: Length of a sign step in [0, 1] units.
        weight: Weight of the cross-entropy of the perturbation alone; the rest goes to the uniform term.
    """

    epochs: int = Field(30, ge=1)
    lr: float = Field(0.003, gt=0)
    batch_size: int = Field(512, ge=2)
    steps: int = Field(30, ge=1)
    step: float = Field(0.8 / 255, gt=0)
    weight: float = Field(0.9, ge=0, le=1)


def linear_surrogate(store: PixelStore, settings: PilSettings, seed: int, runtime: Runtime) -> nn.Module:
    """Two linear layers without bias, from pixels in [0, 1] to logits, trained on the clean images and frozen."""
    classes = len(store.classes)
    with seeded(seed, "pil-surrogate"):
        network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(store.channels * store.size**2, classes, bias=False),
            nn.Linear(classes, classes, bias=False),
        )
    recipe = Recipe(
        lr=settings.lr,
        epochs=settings.epochs,
        batch_size=min(settings.batch_size, max(8, settings.batch_size * len(store) // _PUBLISHED_IMAGES)),
        schedule="cosine",
        weight_decay=0,
        augment="none",
    )
    fit(network, store, recipe, seed=seed, runtime=Runtime(runtime.device, "fp32"))
    return network.requires_grad_(False)


def linear_loss(network: nn.Module, x: Tensor, delta: Tensor, labels: Tensor, weight: float) -> Tensor:
    """w · CE(f(δ), y) + (1 - w) · KL(uniform ‖ f(x - δ)), means over the batch.

    Args:
        network: Pixels to logits.
        x: Pixels in [0, 1].
        delta: Perturbation that is subtracted from them, in [0, 1] units, same shape.
        labels: int64 labels.
        weight: w.
    """
    answers = F.log_softmax(network(x - delta), 1)
    even = F.kl_div(answers, torch.full_like(answers, 1 / answers.shape[1]), reduction="batchmean")
    return weight * F.cross_entropy(network(delta), labels) + (1 - weight) * even


def _linear_noise(material: Material, settings: PilSettings) -> Records:
    rho = material.budget.rho
    network = linear_surrogate(material.store, settings, material.seed, material.runtime)

    def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        generator = stream(material.seed, "pil-start", int(indices[0]))
        delta = rho * (2 * torch.rand(x.shape, generator=generator).to(x.device) - 1)
        for _ in range(settings.steps):
            delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(linear_loss(network, x, delta, labels, settings.weight), delta)
            delta = (delta.detach() - settings.step * gradient.sign()).clamp(-rho, rho)
        return -delta

    return material.filled(change)


PIL = Baseline(
    _linear_noise,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about=(
        "PIL: noise that a linear network takes for the class, and without which it cannot tell the class "
        "(jinlinll/pil, ICLR 2026)."
    ),
    settings=PilSettings,
)
