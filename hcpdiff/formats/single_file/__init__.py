"""Whole models in one file, in the layouts of their original code: Stable Diffusion 1 and 2, XL, SD3 and 3.5, FLUX.

`table` says how one tensor becomes another; `ldm`, `text` and `dit` make such tables from the shapes of diffusers'
models; `layouts` says which parts a file has and under which prefix. The configs of the published models are in
`configs/`. A file holds no tokenizers: whoever reads a model takes them from a folder.
"""

from hcpdiff.formats.single_file.reading import Model
from hcpdiff.formats.single_file.writing import layout_of, rewrite, save

__all__ = ["Model", "layout_of", "rewrite", "save"]
