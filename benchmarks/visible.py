"""Make the small generator by which ``uge web`` shows a change on one picture.

::

    python benchmarks/visible.py  # src/uge/web/visible.safetensors

It learns on 3,000 embedded photographs by the loss of ``robust``, at the least effort, and is half a megabyte. It shows
visibility only.
"""

import shutil
import tempfile
from pathlib import Path

import uge
from uge.methods.apply import save_perturber
from uge.methods.robust.settings import RobustSettings
from uge.methods.uge.settings import GeneratorSettings

OUT = Path(__file__).parents[1] / "src" / "uge" / "web" / "visible.safetensors"
MOST = 2**20


def main() -> None:
    protected = uge.protect(
        uge.load_images("photos").take(3000),
        method="robust",
        budget=0.04,
        robust=RobustSettings(effort="low", generator=400, by="generator"),
        generator=GeneratorSettings(width=12, blocks=2),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, OUT.name)
        save_perturber(path, protected.perturbation.perturber)
        assert path.stat().st_size <= MOST, "the package takes a megabyte at most"
        shutil.copyfile(path, OUT)


if __name__ == "__main__":
    main()
