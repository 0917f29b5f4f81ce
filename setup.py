"""The compiled kernels of the sparse runtime; everything else about the package is in pyproject.toml.

Each instruction set is compiled with its own flags and chosen when the package runs, so that one build serves every
machine of an architecture. Without a C++ compiler the package installs all the same and says so when it predicts.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMMON = ["-std=c++17", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
X86 = {
    "kernels_avx512": ["-mavx512f", "-mprefer-vector-width=512"],
    "kernels_avx2": ["-mavx2", "-mfma"],
}


class BuildKernels(build_ext):
    """Compile each file of the extension with the flags of its instruction set."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link `ext`; whatever goes wrong becomes a warning, since the extension is optional."""
        x86 = platform.machine().lower() in {"x86_64", "amd64"}
        objects = []
        for source in ext.sources:
            stem = Path(source).stem
            flags = [*COMMON, "-O3" if stem.startswith("kernels") else "-O2", *(X86.get(stem, []) if x86 else [])]
            objects += self.compiler.compile(
                [source], output_dir=self.build_temp, extra_postargs=flags, depends=ext.depends
            )
        threads = [] if sys.platform == "darwin" else ["-pthread"]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=threads, target_lang="c++"
        )


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            "hydraprune.runtime._native",
            sources=sorted(str(path) for path in Path("native").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("native").glob("*.h")),
            language="c++",
            optional=True,
        )
    ],
)
